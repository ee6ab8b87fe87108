-- Lists lanes that have ready items, ascending. Each step is one descent of the index, and none for
-- a lane that is known to have some.
--
-- $1 bigint    the lane to begin after
-- $2 bigint    the last lane to list
-- $3 int       how many lanes at most
-- $4 bigint[]  the known lanes between the two, ascending
with recursive walk(lane, i, n) as (
  select $1::bigint, 1, 0
  union all
  select x.lane, w.i + (x.lane = k.lane)::int, w.n + 1
    from walk w
    cross join lateral (select coalesce(($4::bigint[])[w.i], $2::bigint + 1)) k(lane)
    cross join lateral (
      select coalesce(
        case when k.lane > w.lane + 1 then
          (select q.lane from delivery_queue q
            where q.state = 0 and q.lease = 0 and q.lane > w.lane and q.lane < k.lane
            order by q.lane, q.seq limit 1) end,
        case when k.lane <= $2::bigint then k.lane end)
      offset 0) x(lane) -- without offset 0 it is evaluated twice
   where x.lane is not null and w.n < $3::int)
select lane from walk where n > 0;
