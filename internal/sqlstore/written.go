package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/deliverykit/delivery/handler"
)

// Written is something that an item wrote at its destination and that is to be removed some day.
type Written struct {
	Key       // its fence is not set
	Reference handler.Reference
	WrittenAt time.Time

	Removal   handler.Removal
	RemovedAt time.Time // zero: it is still to be removed
	TriedAt   time.Time // when removing it last failed
	Problem   string
}

const writtenColumns = `select organization_id, delivery_id, n, written_at, reference, removal, removed_at, tried_at,
	problem from delivery_written `

// SelectWritten reads the records that the end of a query selects: its conditions from "where" on,
// its order and its limit.
func (tx *Tx) SelectWritten(ctx context.Context, where string, args ...any) (all []Written, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var w Written
		var reference []byte
		var problem sql.NullString
		err := rows.Scan(&w.Organization, &w.Delivery, &w.N, Time{&w.WrittenAt}, &reference, &w.Removal,
			Time{&w.RemovedAt}, Time{&w.TriedAt}, &problem)
		if err == nil {
			err = json.Unmarshal(reference, &w.Reference)
		}
		w.Problem = problem.String
		all = append(all, w)
		return err
	}, writtenColumns+where, args...)
	return all, err
}

// WrittenOf lists what a delivery wrote, whether it was removed or not.
func (tx *Tx) WrittenOf(ctx context.Context, organization, delivery string) ([]Written, error) {
	return tx.SelectWritten(ctx, `where organization_id = $1 and delivery_id = $2`, organization, delivery)
}
