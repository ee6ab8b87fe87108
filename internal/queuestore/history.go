package queuestore

import (
	"context"
	"database/sql"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/queue"
)

// End is the way in which an item ended.
type End struct {
	N           int
	Destination string
	State       queue.State
}

// Ends lists by number how the items of a delivery last ended, even those that are pending again.
func Ends(ctx context.Context, tx *sqlstore.Tx, organization, delivery string) (ends []End, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var e End
		err := rows.Scan(&e.N, &e.Destination, &e.State)
		if last := len(ends) - 1; last >= 0 && ends[last].N == e.N {
			ends = ends[:last]
		}
		ends = append(ends, e)
		return err
	}, `select n, destination_id, state from delivery_attempts
		where organization_id = $1 and delivery_id = $2 and state >= 3 order by n, fence`, organization, delivery)
	return ends, err
}

// Recorded reports whether the history has a record under a key. It is what a
// [sqlstore.Commit] of that record asks.
func Recorded(ctx context.Context, tx *sqlstore.Tx, k sqlstore.Key) (found bool, err error) {
	err = tx.Query(ctx, func(*sql.Rows) error {
		found = true
		return nil
	}, `select 1 from delivery_attempts where organization_id = $1 and delivery_id = $2 and n = $3 and fence = $4`,
		k.Organization, k.Delivery, k.N, k.Fence)
	return found, err
}
