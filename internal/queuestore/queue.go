package queuestore

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/queue"
)

// LaneCount is the number of items of a destination that have one priority and are in one state.
type LaneCount struct {
	Lane   int64
	State  queue.State
	N      int64
	Oldest time.Time // when the oldest became ready, or is due
}

// LaneCounts counts the items of an organization, or of all with [sqlstore.Everyone]: a system
// statement. It reads each of them.
func LaneCounts(ctx context.Context, tx *sqlstore.Tx, organization string) (all []LaneCount, err error) {
	query := `select lane, case when lease <> 0 then 1 else state end, count(*), min(run_at) from delivery_queue`
	var args []any
	if organization != sqlstore.Everyone {
		query += ` where organization_id = $1`
		args = append(args, organization)
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var c LaneCount
		err := rows.Scan(&c.Lane, &c.State, &c.N, sqlstore.Time{T: &c.Oldest})
		all = append(all, c)
		return err
	}, query+` group by 1, 2`, args...)
	return all, err
}

// Ahead counts the ready items of a lane before a number, up to a limit: a system statement.
func Ahead(ctx context.Context, tx *sqlstore.Tx, lane, seq int64, limit int) (n int, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&n) },
		`select count(*) from (select 1 from delivery_queue
			where state = 0 and lease = 0 and lane = $1 and seq < $2 limit $3) q`, lane, seq, limit)
	return n, err
}

// Waits reports whether items wait for a destination.
func Waits(ctx context.Context, tx *sqlstore.Tx, organization string, no int64) (bool, error) {
	found := false
	err := tx.Query(ctx, func(*sql.Rows) error {
		found = true
		return nil
	}, `select 1 from delivery_queue where organization_id = $1 and lane & 4294967295 = $2 limit 1`, organization, no)
	return found, err
}

// NextDue returns the first time later than after at which an item becomes due, a lease ends or a
// deadline passes, zero if there is none: a system statement.
func NextDue(ctx context.Context, tx *sqlstore.Tx, after time.Time) (at time.Time, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var until, deadline time.Time
		err := rows.Scan(sqlstore.Time{T: &at}, sqlstore.Time{T: &until}, sqlstore.Time{T: &deadline})
		for _, t := range []time.Time{until, deadline} {
			if at.IsZero() || !t.IsZero() && t.Before(at) {
				at = t
			}
		}
		return err
	}, `select (select min(run_at) from delivery_queue where state = 2 and run_at > $1),
		(select min(until) from delivery_leases where until > $1),
		(select min(deadline) from delivery_queue where deadline is not null and lease = 0 and deadline > $1)`,
		tx.Time(after))
	return at, err
}
