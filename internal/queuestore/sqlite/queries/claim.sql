-- Reads the oldest ready items of a lane and what they deliver. The statement in lease.sql then puts
-- the same items under a lease, because nobody else writes between the two.
--
-- ?1 integer  the lane
-- ?2 integer  how many items at most
select q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq, q.attempt, q.lost, q.deadline,
    d.created_at, d.deadline, d.topic, d.priority, d.idempotency_key, d.correlation_id, d.trace_parent,
    d.tags, d.metadata, d.options, d.payload_name, d.payload_type, d.payload_size, d.payload_sha256, d.payload,
    d.payload_id, d.payload_source, d.payload_ref
  from delivery_queue q
  left join delivery_deliveries d on d.organization_id = q.organization_id and d.id = q.delivery_id
 where q.state = 0 and q.lease = 0 and q.lane = ?1 order by q.seq limit ?2;
