-- Lists scheduled items that are due, in the order of their times.
--
-- ?1 integer  at this time
-- ?2 integer  how many at most
select organization_id, delivery_id, n, fence, lane, seq,
    case when lease <> 0 then 1 else state end, attempt, lost, cancel, gated, run_at, deadline
  from delivery_queue where state = 2 and run_at <= ?1 order by run_at limit ?2;
