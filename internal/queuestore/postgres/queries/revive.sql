-- Makes dead letters ready items again. Their fence grows by two: the number between belongs to the
-- record of the return.
--
-- $1 text[]         the organizations of the dead letters
-- $2 uuid[]         their deliveries
-- $3 smallint[]     their numbers
-- $4 int[]          their fences
-- $5 bigint[]       their lanes
-- $6 timestamptz[]  their deadlines
-- $7 timestamptz    since when they are ready
with i as materialized (
  select * from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::bigint[], $6::timestamptz[])
    i(o, d, n, f, lane, deadline)
), gone as (
  delete from delivery_dead_letters l where l.ctid = any(array(
    select x.tid from i cross join lateral (select l.ctid tid from delivery_dead_letters l
      where l.organization_id = i.o and l.delivery_id = i.d and l.n = i.n and l.fence = i.f limit 1) x))
)
insert into delivery_queue (organization_id, delivery_id, n, fence, lane, run_at, deadline)
select o, d, n, f + 2, lane, $7, deadline from i
on conflict (organization_id, delivery_id, n) do nothing;
