-- Lists the ranks that have ready items, ascending.
with recursive r(rank) as (
  select (select q.lane >> 32 from delivery_queue q where q.state = 0 and q.lease = 0 order by q.lane, q.seq limit 1)
  union all
  select (select q.lane >> 32 from delivery_queue q
           where q.state = 0 and q.lease = 0 and q.lane >= (r.rank + 1) << 32
           order by q.lane, q.seq limit 1)
    from r where r.rank is not null)
select rank from r where rank is not null;
