-- Puts the oldest ready items of a lane under a lease: those that claim.sql has just read.
--
-- ?1 integer  the lane
-- ?2 integer  how many items at most
-- ?3 integer  the lease
-- ?4 integer  the gate: 0 open, 1 limited, 2 in strict order
update delivery_queue set lease = ?3, gated = ?4
 where (organization_id, delivery_id, n) in (
   select q.organization_id, q.delivery_id, q.n from delivery_queue q
    where q.state = 0 and q.lease = 0 and q.lane = ?1 order by q.seq limit ?2);
