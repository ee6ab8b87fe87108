-- Makes scheduled items ready.
--
-- $1 timestamptz  those that are due at this time
-- $2 int          how many at most
-- $3 timestamptz  and that became due after this time
update delivery_queue q set state = 0, seq = case when q.gated = 2 then q.seq else nextval('delivery_seq') end
 where q.ctid = any(array(
   select ctid from delivery_queue where state = 2 and run_at > $3 and run_at <= $1
   order by run_at limit $2 for update skip locked));
