-- Written by go test -update.

-- name: of destinations
select lane & 4294967295, count(*) from delivery_queue indexed by delivery_queue_gated
 where organization_id = ?1 and lane & 4294967295 in (1, 2) and gated <> 0 and (state <> 0 or lease <> 0) group by 1;
