-- Counts the gated items of an organization that are leased. The index is named: without statistics
-- SQLite takes the primary key to be as good, which is all items of the organization.
--
-- ?1 text  the organization
select count(*) from delivery_queue indexed by delivery_queue_gated
 where organization_id = ?1 and gated <> 0 and lease <> 0;
