-- Locks and lists items without a lease whose deadline has passed.
--
-- $1 timestamptz  at this time
-- $2 int          how many at most
-- $3 timestamptz  but not yet at this time
select q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq,
    case when q.lease <> 0 then 1 else q.state end, q.attempt, q.lost, q.cancel, q.gated, q.run_at, q.deadline
  from delivery_queue q
 where q.deadline is not null and q.deadline > $3 and q.deadline <= $1 and q.lease = 0
 order by q.deadline limit $2 for update skip locked;
