-- Lists the ranks that have ready items, in any order.
--
-- $1 bigint[]  the ranks to look at
select r.rank from unnest($1::bigint[]) r(rank)
 cross join lateral (select 1 from delivery_queue q
   where q.state = 0 and q.lease = 0 and q.lane >= r.rank << 32 and q.lane < (r.rank + 1) << 32
   order by q.lane, q.seq limit 1) q;
