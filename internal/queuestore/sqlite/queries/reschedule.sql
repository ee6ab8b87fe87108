-- Puts an item back into the queue if its fence matches, and returns the reason for which it is to be
-- cancelled.
--
-- ?1 text     the organization of the item
-- ?2 text     its delivery
-- ?3 integer  its number
-- ?4 integer  its fence
-- ?5 integer  the state: 0 ready, 2 scheduled
-- ?6 integer  since when it is ready, or when it is due
-- ?7 integer  1 if the attempt counts
-- ?8 integer  1 if the lease was lost
-- ?9 integer  its new seq, unless it is in strict order
update delivery_queue
   set state = ?5, lease = 0, progress = null, run_at = ?6, attempt = attempt + ?7, lost = lost + ?8,
       seq = case when gated = 2 then seq else ?9 end, fence = fence + 1,
       gated = case when gated = 2 then 2 else 0 end
 where organization_id = ?1 and delivery_id = ?2 and n = ?3 and fence = ?4
returning cancel;
