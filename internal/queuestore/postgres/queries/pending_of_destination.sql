-- Locks and lists the items of a destination, without those under a lease that are to be cancelled
-- already. It reads all items of the organization: it is for deletions, which are rare.
--
-- $1 text    the organization
-- $2 bigint  the number of the destination
-- $3 int     how many items at most
select q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq,
    case when q.lease <> 0 then 1 else q.state end, q.attempt, q.lost, q.cancel, q.gated, q.run_at, q.deadline
  from delivery_queue q
 where q.organization_id = $1 and q.lane & 4294967295 = $2 and (q.lease = 0 or q.cancel = 0)
 order by q.delivery_id limit $3 for update;
