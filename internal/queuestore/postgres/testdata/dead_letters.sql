-- Written by go test -update.

-- name: all, first
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
 order by l.delivery_id desc, l.n desc limit $2;

-- name: all, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and (l.delivery_id, l.n) < ($2, $3)
 order by l.delivery_id desc, l.n desc limit $4;

-- name: all, to change
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
 order by l.delivery_id, l.n limit $2 for update of l;

-- name: all, to change, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and (l.delivery_id, l.n) > ($2, $3)
 order by l.delivery_id, l.n limit $4 for update of l;

-- name: all, purge
delete
  from delivery_dead_letters as l
 where l.organization_id = $1
   and (l.delivery_id, l.n) > ($2, $3)
   and (l.delivery_id, l.n) <= ($4, $5);

-- name: one destination, first
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
 order by l.delivery_id desc, l.n desc limit $3;

-- name: one destination, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and (l.delivery_id, l.n) < ($3, $4)
 order by l.delivery_id desc, l.n desc limit $5;

-- name: one destination, to change
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
 order by l.delivery_id, l.n limit $3 for update of l;

-- name: one destination, to change, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and (l.delivery_id, l.n) > ($3, $4)
 order by l.delivery_id, l.n limit $5 for update of l;

-- name: one destination, purge
delete
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and (l.delivery_id, l.n) > ($3, $4)
   and (l.delivery_id, l.n) <= ($5, $6);

-- name: one delivery, first
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.delivery_id = $2
 order by l.delivery_id desc, l.n desc limit $3;

-- name: one delivery, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.delivery_id = $2
   and (l.delivery_id, l.n) < ($3, $4)
 order by l.delivery_id desc, l.n desc limit $5;

-- name: one delivery, to change
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.delivery_id = $2
 order by l.delivery_id, l.n limit $3 for update of l;

-- name: one delivery, to change, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.delivery_id = $2
   and (l.delivery_id, l.n) > ($3, $4)
 order by l.delivery_id, l.n limit $5 for update of l;

-- name: one delivery, purge
delete
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.delivery_id = $2
   and (l.delivery_id, l.n) > ($3, $4)
   and (l.delivery_id, l.n) <= ($5, $6);

-- name: all criteria, first
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and l.died_at >= $3
   and l.died_at < $4
   and l.died_at <= $5
   and (select d.topic from delivery_deliveries d
     where d.organization_id = l.organization_id and d.id = l.delivery_id) = $6
   and l.reason in (5)
 order by l.delivery_id desc, l.n desc limit $7;

-- name: all criteria, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and l.died_at >= $3
   and l.died_at < $4
   and l.died_at <= $5
   and (select d.topic from delivery_deliveries d
     where d.organization_id = l.organization_id and d.id = l.delivery_id) = $6
   and l.reason in (5)
   and (l.delivery_id, l.n) < ($7, $8)
 order by l.delivery_id desc, l.n desc limit $9;

-- name: all criteria, to change
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and l.died_at >= $3
   and l.died_at < $4
   and l.died_at <= $5
   and (select d.topic from delivery_deliveries d
     where d.organization_id = l.organization_id and d.id = l.delivery_id) = $6
   and l.reason in (5)
 order by l.delivery_id, l.n limit $7 for update of l;

-- name: all criteria, to change, next
select l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and l.died_at >= $3
   and l.died_at < $4
   and l.died_at <= $5
   and (select d.topic from delivery_deliveries d
     where d.organization_id = l.organization_id and d.id = l.delivery_id) = $6
   and l.reason in (5)
   and (l.delivery_id, l.n) > ($7, $8)
 order by l.delivery_id, l.n limit $9 for update of l;

-- name: all criteria, purge
delete
  from delivery_dead_letters as l
 where l.organization_id = $1
   and l.destination_id = $2
   and l.died_at >= $3
   and l.died_at < $4
   and l.died_at <= $5
   and (select d.topic from delivery_deliveries d
     where d.organization_id = l.organization_id and d.id = l.delivery_id) = $6
   and l.reason in (5)
   and (l.delivery_id, l.n) > ($7, $8)
   and (l.delivery_id, l.n) <= ($9, $10);
