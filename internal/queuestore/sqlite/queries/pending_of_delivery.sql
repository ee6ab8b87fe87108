-- Lists the items of a delivery.
--
-- ?1 text     the organization
-- ?2 text     the delivery
-- ?3 integer  how many items at most
select organization_id, delivery_id, n, fence, lane, seq,
    case when lease <> 0 then 1 else state end, attempt, lost, cancel, gated, run_at, deadline
  from delivery_queue where organization_id = ?1 and delivery_id = ?2 order by n limit ?3;
