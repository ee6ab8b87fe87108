package queuestore

import (
	"context"
	"database/sql"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// ItemRow is a pending item of a delivery with its destination.
type ItemRow struct {
	Claimed
	Destination string
	Progress    int64    // bytes that the other side has, as last noted
	Of          LaneInfo // its destination
}

// Items lists the pending items of a delivery.
func Items(ctx context.Context, tx *sqlstore.Tx, organization, delivery string) (items []ItemRow, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var i ItemRow
		err := rows.Scan(&i.Organization, &i.Delivery, &i.N, &i.Fence, &i.Lane, &i.Seq, &i.State, &i.Attempt, &i.Lost,
			&i.Cancel, sqlstore.Time{T: &i.RunAt}, sqlstore.Time{T: &i.Deadline}, &i.Destination, &i.Progress)
		items = append(items, i)
		return err
	}, `select q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq,
		case when q.lease <> 0 then 1 else q.state end, q.attempt, q.lost, q.cancel, q.run_at,
		q.deadline, d.id, coalesce(q.progress, 0)
		from delivery_queue q
		join delivery_destinations d on d.no = q.lane & 4294967295 and d.organization_id = q.organization_id
		where q.organization_id = $1 and q.delivery_id = $2 order by q.n`, organization, delivery)
	if err != nil || len(items) == 0 {
		return nil, err
	}
	nos := make([]int64, len(items))
	for i := range items {
		nos[i] = DestinationOf(items[i].Lane)
	}
	infos, err := LaneInfos(ctx, tx, nos)
	for i := range items {
		items[i].Of = infos[nos[i]]
	}
	return items, err
}

// ItemsOf lists the items of a delivery by number, both pending and ended. An item that was retried
// is both.
func ItemsOf(ctx context.Context, tx *sqlstore.Tx, organization, delivery string) (items []EnqueuedItem, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var i EnqueuedItem
		err := rows.Scan(&i.N, &i.Destination)
		items = append(items, i)
		return err
	}, `select q.n, d.id from delivery_queue q
		join delivery_destinations d on d.no = q.lane & 4294967295 and d.organization_id = q.organization_id
		where q.organization_id = $1 and q.delivery_id = $2
		union
		select a.n, a.destination_id from delivery_attempts a
		where a.organization_id = $1 and a.delivery_id = $2 and a.state >= 3
		order by 1`, organization, delivery)
	return items, err
}
