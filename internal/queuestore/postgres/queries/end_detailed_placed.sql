-- Ends items in any state: those that end dead become dead letters.
-- It deletes and records in one statement, and returns the position of each item in the arrays.
-- It looks for a row only where the claim left it, which saves a descent of the index for each.
-- There it checks the key and the fence, as the other statements do.
--
-- The rows are locked, so that as many are deleted as were found. But a row that was changed while
-- this statement waited for it, by a cancellation for example, is found in its new version and
-- deleted in neither. Then the two counts differ, and the transaction has to run again.
--
-- $1 text[]       the organizations of the items
-- $2 uuid[]       their deliveries
-- $3 smallint[]   their numbers
-- $4 int[]        their fences
-- $5 uuid[]       their destinations
-- $6 smallint[]   the numbers of the attempts
-- $7 real[]       how long the attempts took, in seconds; null: none was begun
-- $8 timestamptz  when they ended
-- $9 smallint[]   the states
-- $10 smallint[]  the reasons
-- $11 smallint[]  the failures: category
-- $12 int[]       status code
-- $13 text[]      code
-- $14 text[]      message
-- $15 jsonb[]     the references
-- $16 jsonb[]     the details
-- $17 tid[]       where the claim left the rows
with i as materialized (
  select * from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::uuid[], $6::smallint[], $7::real[],
      $9::smallint[], $10::smallint[], $11::smallint[], $12::int[], $13::text[], $14::text[], $15::jsonb[], $16::jsonb[], $17::tid[])
    with ordinality i(o, d, n, f, destination, attempt, took,
      state, reason, category, status, code, error, reference, detail, place, position)
), t as materialized (
  select q.*, i.* from i
  cross join lateral (select q.ctid tid, q.lane, q.deadline from delivery_queue q
    where q.organization_id = i.o and q.delivery_id = i.d and q.n = i.n and q.fence = i.f and q.ctid = i.place
    limit 1 for update) q
), gone as (
  delete from delivery_queue q where q.ctid = any(array(select tid from t)) returning 1
), kept as (
  insert into delivery_attempts
    (organization_id, delivery_id, n, fence, destination_id, attempt, took, ended_at, state, reason,
      category, status_code, code, error, reference, detail)
  select o, d, n, f, destination, attempt, took, $8, state, reason,
      category, status, code, error, reference, detail from t
), dead as (
  insert into delivery_dead_letters
    (organization_id, delivery_id, n, fence, lane, destination_id, reason, died_at, deadline)
  select o, d, n, f, lane, destination, reason, $8, deadline from t where state = 4
  on conflict (organization_id, delivery_id, n) do update
    set fence = excluded.fence, lane = excluded.lane, reason = excluded.reason, died_at = excluded.died_at
)
select t.position, (select count(*) from gone) from t;
