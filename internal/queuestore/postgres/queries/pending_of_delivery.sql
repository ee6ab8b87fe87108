-- Locks and lists the items of a delivery.
--
-- $1 text  the organization
-- $2 uuid  the delivery
-- $3 int   how many items at most
select q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq,
    case when q.lease <> 0 then 1 else q.state end, q.attempt, q.lost, q.cancel, q.gated, q.run_at, q.deadline
  from delivery_queue q
 where q.organization_id = $1 and q.delivery_id = $2 order by q.n limit $3 for update;
