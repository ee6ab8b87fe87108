-- Counts the gated items of destinations that are leased or wait for a retry. State is not among the
-- conditions of the lateral query: that would invite the index of what is due.
--
-- $1 bigint[]  the numbers of the destinations
-- $2 text[]    their organizations
select d.no, q.n from unnest($1::bigint[], $2::text[]) d(no, organization)
 cross join lateral (select count(*) filter (where q.state <> 0 or q.lease <> 0) n from delivery_queue q
   where q.organization_id = d.organization and q.lane & 4294967295 = d.no and q.gated <> 0) q;
