-- Lists items without a lease whose deadline has passed.
--
-- ?1 integer  at this time
-- ?2 integer  how many at most
select organization_id, delivery_id, n, fence, lane, seq,
    case when lease <> 0 then 1 else state end, attempt, lost, cancel, gated, run_at, deadline
  from delivery_queue
 where deadline is not null and deadline <= ?1 and lease = 0 order by deadline limit ?2;
