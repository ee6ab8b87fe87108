-- Adds attempts to the history of items that stay in the queue.
--
-- $1 text[]         the organizations of the items
-- $2 uuid[]         their deliveries
-- $3 smallint[]     their numbers
-- $4 int[]          their fences
-- $5 uuid[]         their destinations
-- $6 smallint[]     the numbers of the attempts
-- $7 real[]         how long the attempts took, in seconds; null: none was begun
-- $8 timestamptz    when they ended
-- $9 smallint[]     the states
-- $10 smallint[]    the reasons
-- $11 smallint[]    the failures: category
-- $12 int[]         status code
-- $13 text[]        code
-- $14 text[]        message
-- $15 jsonb[]       the references
-- $16 jsonb[]       the details
-- $17 timestamptz[] when the next attempts are due
insert into delivery_attempts (organization_id, delivery_id, n, fence, destination_id, attempt, took, ended_at, state, reason,
    category, status_code, code, error, reference, detail, next_at)
select o, d, n, f, destination, attempt, took, $8, state, reason, category, status, code, error, reference, detail, next_at
  from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::uuid[], $6::smallint[], $7::real[], $9::smallint[],
    $10::smallint[], $11::smallint[], $12::int[], $13::text[], $14::text[], $15::jsonb[], $16::jsonb[], $17::timestamptz[])
    i(o, d, n, f, destination, attempt, took, state, reason, category, status, code, error, reference, detail, next_at);
