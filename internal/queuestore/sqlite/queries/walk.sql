-- Lists lanes that have ready items, ascending. Each step is one descent of the index.
--
-- ?1 integer  the lane to begin after
-- ?2 integer  the last lane to list
-- ?3 integer  how many lanes at most
with recursive walk(lane, n) as (
  select (select lane from delivery_queue
           where state = 0 and lease = 0 and lane > ?1 and lane <= ?2
           order by lane, seq limit 1), 1
  union all
  select (select q.lane from delivery_queue q
           where q.state = 0 and q.lease = 0 and q.lane > w.lane and q.lane <= ?2
           order by q.lane, q.seq limit 1), n + 1
    from walk w where w.lane is not null and n < ?3)
select lane from walk where lane is not null;
