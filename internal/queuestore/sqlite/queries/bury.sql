-- Makes an item that is about to end dead a dead letter, if its fence matches.
--
-- ?1 text     the organization of the item
-- ?2 text     its delivery
-- ?3 integer  its number
-- ?4 integer  its fence
-- ?5 text     its destination
-- ?6 integer  the reason
-- ?7 integer  when it died
insert or replace into delivery_dead_letters
  (organization_id, delivery_id, n, fence, lane, destination_id, reason, died_at, deadline)
select organization_id, delivery_id, n, fence, lane, ?5, ?6, ?7, deadline from delivery_queue
 where organization_id = ?1 and delivery_id = ?2 and n = ?3 and fence = ?4;
