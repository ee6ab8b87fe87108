-- Lists the items of a destination, without those under a lease that are to be cancelled already. It
-- reads all items of the organization: it is for deletions, which are rare.
--
-- ?1 text     the organization
-- ?2 integer  the number of the destination
-- ?3 integer  how many items at most
select organization_id, delivery_id, n, fence, lane, seq,
    case when lease <> 0 then 1 else state end, attempt, lost, cancel, gated, run_at, deadline
  from delivery_queue
 where organization_id = ?1 and lane & 4294967295 = ?2 and (lease = 0 or cancel = 0)
 order by delivery_id limit ?3;
