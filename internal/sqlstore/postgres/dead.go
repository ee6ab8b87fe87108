package postgres

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

const revive = `
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
on conflict (organization_id, delivery_id, n) do nothing`

// Revive implements sqlstore.Native.
func (d Dialect) Revive(ctx context.Context, tx sqlstore.Execer, now time.Time, letters []sqlstore.DeadLetter) error {
	var lane, deadline array
	for _, l := range letters {
		lane.int(l.Lane)
		deadline.time(l.Deadline)
	}
	args := keyArrays(len(letters), func(i int) sqlstore.Key { return letters[i].Key })
	_, err := tx.ExecContext(ctx, revive, append(args, lane.String(), deadline.String(), d.Time(now))...)
	return err
}
