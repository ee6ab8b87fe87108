-- Puts the oldest ready items of each lane under a lease, and reads what they deliver.
--
-- $1 bigint[]  the lanes
-- $2 int[]     by lane: how many items at most
-- $3 bigint    the lease
-- $4 bigint[]  the lanes with a limit
-- $5 bigint[]  the lanes in strict order
-- $6 bigint[]  by lane: the first seq to look at
with pick as materialized (
  select p.tid from unnest($1::bigint[], $2::int[], $6::bigint[]) w(lane, n, floor)
  cross join lateral (select q.ctid tid from delivery_queue q
    where q.state = 0 and q.lease = 0 and q.lane = w.lane and q.seq >= w.floor
    order by q.seq limit w.n for update skip locked) p
), claimed as (
  update delivery_queue q set lease = $3,
      gated = case when q.lane = any($5::bigint[]) then 2 when q.lane = any($4::bigint[]) then 1 else 0 end
   where q.ctid = any(array(select tid from pick))
  returning q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq, q.attempt, q.lost, q.deadline, q.ctid place
)
select c.organization_id, c.delivery_id, c.n, c.fence, c.lane, c.seq, c.attempt, c.lost, c.deadline, c.place,
    d.created_at, d.deadline, d.topic, d.priority, d.idempotency_key, d.correlation_id, d.trace_parent,
    d.tags, d.metadata, d.options, d.payload_name, d.payload_type, d.payload_size, d.payload_sha256, d.payload,
    d.payload_id, d.payload_source, d.payload_ref
  from claimed c left join lateral (select * from delivery_deliveries d
    where d.organization_id = c.organization_id and d.id = c.delivery_id limit 1) d on true;
