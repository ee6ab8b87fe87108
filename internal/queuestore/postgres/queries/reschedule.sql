-- Puts items back into the queue, and returns them with the fence that they had and with the reason
-- for which they are to be cancelled. It is a join of two small sets and reaches the queue by ctid.
--
-- $1 text[]         the organizations of the items
-- $2 uuid[]         their deliveries
-- $3 smallint[]     their numbers
-- $4 int[]          their fences
-- $5 smallint[]     the states: 0 ready, 2 scheduled
-- $6 timestamptz[]  since when they are ready, or when they are due
-- $7 smallint[]     1 where the attempt counts
-- $8 smallint[]     1 where the lease was lost
with i as materialized (
  select * from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::smallint[], $6::timestamptz[], $7::smallint[],
    $8::smallint[]) i(o, d, n, f, state, run_at, charge, lost)
), t as materialized (
  select q.tid, i.state, i.run_at, i.charge, i.lost from i
  cross join lateral (select q.ctid tid from delivery_queue q
    where q.organization_id = i.o and q.delivery_id = i.d and q.n = i.n and q.fence = i.f limit 1 for update) q)
update delivery_queue q
   set (state, run_at, attempt, lost) =
       (select t.state, t.run_at, q.attempt + t.charge, q.lost + t.lost from t where t.tid = q.ctid),
       lease = 0, progress = null,
       fence = q.fence + 1, seq = case when q.gated = 2 then q.seq else nextval('delivery_seq') end,
       gated = case when q.gated = 2 then 2 else 0 end
 where q.ctid = any(array(select tid from t))
returning q.organization_id, q.delivery_id, q.n, q.fence - 1, q.cancel;
