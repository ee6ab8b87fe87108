-- Written by go test -update.

-- name: plain
with req as (
  select * from unnest($4::uuid[], $5::smallint[], $6::text[], $7::bigint[], $8::int[], $9::boolean[])
    r(id, priority, payload_type, payload_size, hash_at, inline)
), known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = $1 and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest($10::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from unnest($11::int[], $12::smallint[], $13::int[], $14::smallint[], $15::uuid[])
    it(i, n, at, rank, delivery_id)
), ok as materialized (
  select not exists (select from dest where no is null) ok
), inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, id, priority, payload_type, payload_size, payload_sha256, payload)
  select $1, coalesce($2::timestamptz, now()), id, priority, payload_type, payload_size,
      substring($3::bytea from hash_at for 32),
      case when inline then substring($3::bytea from hash_at + 32 for payload_size::int) end
    from req where (select ok from ok)
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, coalesce($2::timestamptz, now()), 0
    from dest d where (select ok from ok)
   order by d.i, d.n
)
select d.i, d.n, d.no is not null, true
  from dest d where not (select ok from ok);

-- name: keyed
with req as (
  select * from unnest($4::uuid[], $5::smallint[], $6::text[], $7::text[], $8::bigint[], $9::int[], $10::boolean[], $11::bytea[],
      $12::bigint[])
    r(id, priority, idempotency_key, payload_type, payload_size, hash_at, inline, fingerprint,
      ttl)
), known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = $1 and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest($13::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from unnest($14::int[], $15::smallint[], $16::int[], $17::smallint[], $18::uuid[], $19::boolean[])
    it(i, n, at, rank, delivery_id, keyed)
), ok as materialized (
  select not exists (select from dest where no is null) ok
), keys as (
  insert into delivery_idempotency as k (organization_id, key, fingerprint, delivery_id, expires_at)
  select $1, idempotency_key, fingerprint, id, coalesce($2::timestamptz, now()) + ttl * interval '1 microsecond'
    from req where (select ok from ok) and idempotency_key is not null order by idempotency_key
  on conflict (organization_id, key) do update
    set fingerprint = excluded.fingerprint, delivery_id = excluded.delivery_id, expires_at = excluded.expires_at
    where k.expires_at <= coalesce($2::timestamptz, now())
  returning delivery_id
), inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, id, priority, idempotency_key, payload_type, payload_size, payload_sha256, payload)
  select $1, coalesce($2::timestamptz, now()), id, priority, idempotency_key, payload_type, payload_size,
      substring($3::bytea from hash_at for 32),
      case when inline then substring($3::bytea from hash_at + 32 for payload_size::int) end
    from req where (select ok from ok)
      and (idempotency_key is null or id in (select delivery_id from keys))
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, coalesce($2::timestamptz, now()), 0
    from dest d where (select ok from ok)
      and (d.keyed is null or d.delivery_id in (select delivery_id from keys))
   order by d.i, d.n
)
select d.i, d.n, d.no is not null, (d.keyed is null or d.delivery_id in (select delivery_id from keys))
  from dest d where not (select ok from ok) or d.keyed;

-- name: timed
with req as (
  select * from unnest($4::uuid[], $5::timestamptz[], $6::smallint[], $7::text[], $8::bigint[], $9::int[], $10::boolean[])
    r(id, deadline, priority, payload_type, payload_size, hash_at, inline)
), known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = $1 and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest($11::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from unnest($12::int[], $13::smallint[], $14::int[], $15::smallint[], $16::uuid[], $17::timestamptz[], $18::timestamptz[])
    it(i, n, at, rank, delivery_id, not_before, deadline)
), ok as materialized (
  select not exists (select from dest where no is null) ok
), inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, id, deadline, priority, payload_type, payload_size, payload_sha256, payload)
  select $1, coalesce($2::timestamptz, now()), id, deadline, priority, payload_type, payload_size,
      substring($3::bytea from hash_at for 32),
      case when inline then substring($3::bytea from hash_at + 32 for payload_size::int) end
    from req where (select ok from ok)
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state, deadline)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, greatest(d.not_before, coalesce($2::timestamptz, now())),
      case when d.not_before > coalesce($2::timestamptz, now()) then 2 else 0 end, d.deadline
    from dest d where (select ok from ok)
   order by d.i, d.n
)
select d.i, d.n, d.no is not null, true
  from dest d where not (select ok from ok);

-- name: stored
with req as (
  select * from unnest($4::uuid[], $5::smallint[], $6::text[], $7::bigint[], $8::uuid[], $9::int[])
    r(id, priority, payload_type, payload_size, payload_id, hash_at)
), known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = $1 and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest($10::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from unnest($11::int[], $12::smallint[], $13::int[], $14::smallint[], $15::uuid[])
    it(i, n, at, rank, delivery_id)
), ok as materialized (
  select not exists (select from dest where no is null) ok
), inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, id, priority, payload_type, payload_size, payload_id, payload_sha256)
  select $1, coalesce($2::timestamptz, now()), id, priority, payload_type, payload_size, payload_id,
      substring($3::bytea from hash_at for 32)
    from req where (select ok from ok)
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, coalesce($2::timestamptz, now()), 0
    from dest d where (select ok from ok)
   order by d.i, d.n
)
select d.i, d.n, d.no is not null, true
  from dest d where not (select ok from ok);

-- name: referenced
with req as (
  select * from unnest($3::uuid[], $4::smallint[], $5::text[], $6::bigint[], $7::text[], $8::text[])
    r(id, priority, payload_type, payload_size, payload_source, payload_ref)
), known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = $1 and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest($9::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from unnest($10::int[], $11::smallint[], $12::int[], $13::smallint[], $14::uuid[])
    it(i, n, at, rank, delivery_id)
), ok as materialized (
  select not exists (select from dest where no is null) ok
), inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, id, priority, payload_type, payload_size, payload_source, payload_ref)
  select $1, coalesce($2::timestamptz, now()), id, priority, payload_type, payload_size, payload_source, payload_ref
    from req where (select ok from ok)
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, coalesce($2::timestamptz, now()), 0
    from dest d where (select ok from ok)
   order by d.i, d.n
)
select d.i, d.n, d.no is not null, true
  from dest d where not (select ok from ok);

-- name: impossible
with req as (
  select * from unnest($4::uuid[], $5::smallint[], $6::text[], $7::bigint[], $8::int[], $9::boolean[])
    r(id, priority, payload_type, payload_size, hash_at, inline)
), known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = $1 and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest($10::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from unnest($11::int[], $12::smallint[], $13::int[], $14::smallint[], $15::uuid[])
    it(i, n, at, rank, delivery_id)
), ok as materialized (
  select false and not exists (select from dest where no is null) ok
), inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, id, priority, payload_type, payload_size, payload_sha256, payload)
  select $1, coalesce($2::timestamptz, now()), id, priority, payload_type, payload_size,
      substring($3::bytea from hash_at for 32),
      case when inline then substring($3::bytea from hash_at + 32 for payload_size::int) end
    from req where (select ok from ok)
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, coalesce($2::timestamptz, now()), 0
    from dest d where (select ok from ok)
   order by d.i, d.n
)
select d.i, d.n, d.no is not null, true
  from dest d where not (select ok from ok);

-- name: full
with req as (
  select * from unnest($4::uuid[], $5::timestamptz[], $6::smallint[], $7::text[], $8::text[], $9::text[], $10::text[], $11::jsonb[],
      $12::jsonb[], $13::jsonb[], $14::text[], $15::text[], $16::bigint[], $17::uuid[], $18::text[], $19::text[],
      $20::boolean[], $21::int[], $22::boolean[], $23::bytea[], $24::bigint[])
    r(id, deadline, priority, idempotency_key, topic, correlation_id, trace_parent, tags,
      metadata, options, payload_name, payload_type, payload_size, payload_id, payload_source, payload_ref,
      fallback, hash_at, inline, fingerprint, ttl)
), known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = $1 and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest($25::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from unnest($26::int[], $27::smallint[], $28::int[], $29::smallint[], $30::uuid[], $31::timestamptz[], $32::timestamptz[], $33::boolean[])
    it(i, n, at, rank, delivery_id, not_before, deadline, keyed)
), ok as materialized (
  select not exists (select from dest where no is null) ok
), keys as (
  insert into delivery_idempotency as k (organization_id, key, fingerprint, delivery_id, expires_at)
  select $1, idempotency_key, fingerprint, id, coalesce($2::timestamptz, now()) + ttl * interval '1 microsecond'
    from req where (select ok from ok) and idempotency_key is not null order by idempotency_key
  on conflict (organization_id, key) do update
    set fingerprint = excluded.fingerprint, delivery_id = excluded.delivery_id, expires_at = excluded.expires_at
    where k.expires_at <= coalesce($2::timestamptz, now())
  returning delivery_id
), inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, id, deadline, priority, idempotency_key, topic, correlation_id, trace_parent, tags,
      metadata, options, payload_name, payload_type, payload_size, payload_id, payload_source, payload_ref,
      fallback, payload_sha256, payload)
  select $1, coalesce($2::timestamptz, now()), id, deadline, priority, idempotency_key, topic, correlation_id, trace_parent, tags,
      metadata, options, payload_name, payload_type, payload_size, payload_id, payload_source, payload_ref,
      fallback,
      substring($3::bytea from hash_at for 32),
      case when inline then substring($3::bytea from hash_at + 32 for payload_size::int) end
    from req where (select ok from ok)
      and (idempotency_key is null or id in (select delivery_id from keys))
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state, deadline)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, greatest(d.not_before, coalesce($2::timestamptz, now())),
      case when d.not_before > coalesce($2::timestamptz, now()) then 2 else 0 end, d.deadline
    from dest d where (select ok from ok)
      and (d.keyed is null or d.delivery_id in (select delivery_id from keys))
   order by d.i, d.n
)
select d.i, d.n, d.no is not null, (d.keyed is null or d.delivery_id in (select delivery_id from keys))
  from dest d where not (select ok from ok) or d.keyed;
