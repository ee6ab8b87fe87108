-- Counts the gated items of an organization that are leased.
--
-- $1 text  the organization
select count(*) filter (where q.lease <> 0) from delivery_queue q
 where q.organization_id = $1 and q.gated <> 0;
