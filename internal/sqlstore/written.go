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

// noteWritten records what the applied outcomes wrote, as far as it is to be removed some day.
func (tx *Tx) noteWritten(ctx context.Context, outcomes []*Outcome, applied []bool) error {
	for i, o := range outcomes {
		if !o.Written || !applied[i] {
			continue
		}
		reference, err := json.Marshal(o.Reference)
		if err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, `insert into delivery_written
			(organization_id, delivery_id, n, destination_no, written_at, reference)
			values ($1, $2, $3, $4, $5, $6) on conflict do nothing`,
			o.Organization, o.Delivery, o.N, o.No, tx.Time(tx.Now), tx.JSON(reference)); err != nil {
			return err
		}
	}
	return nil
}

const writtenColumns = `select organization_id, delivery_id, n, written_at, reference, removal, removed_at, tried_at,
	problem from delivery_written `

func (tx *Tx) written(ctx context.Context, where string, args ...any) (all []Written, err error) {
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

// WrittenBefore lists what was written at a destination before a time and is still to be removed,
// oldest first: a system statement. It begins after the given one; a zero one is the start.
func (tx *Tx) WrittenBefore(
	ctx context.Context, no int64, before time.Time, after Written, limit int,
) ([]Written, error) {
	if after.Delivery == "" {
		return tx.written(ctx, `where destination_no = $1 and removed_at is null and written_at < $2
			order by written_at, delivery_id, n limit $3`, no, tx.Time(before), limit)
	}
	return tx.written(ctx, `where destination_no = $1 and removed_at is null and written_at < $2
		and (written_at, delivery_id, n) > ($3, $4, $5) order by written_at, delivery_id, n limit $6`,
		no, tx.Time(before), tx.Time(after.WrittenAt), after.Delivery, after.N, limit)
}

// WrittenOf lists what a delivery wrote, whether it was removed or not.
func (tx *Tx) WrittenOf(ctx context.Context, organization, delivery string) ([]Written, error) {
	return tx.written(ctx, `where organization_id = $1 and delivery_id = $2`, organization, delivery)
}

// NoteRemoval records that something was removed, or why that failed and is tried again. The record
// of a removal goes with its delivery. If the delivery is gone already, the record goes at once.
func (tx *Tx) NoteRemoval(ctx context.Context, w Written) error {
	if w.Removal == handler.NotRemoved {
		_, err := tx.Exec(ctx, `update delivery_written set tried_at = $4, problem = $5
			where organization_id = $1 and delivery_id = $2 and n = $3 and removed_at is null`,
			w.Organization, w.Delivery, w.N, tx.Time(tx.Now), w.Problem)
		return err
	}
	_, err := tx.Exec(ctx, `update delivery_written set removed_at = $4, removal = $5, problem = null
		where organization_id = $1 and delivery_id = $2 and n = $3 and removed_at is null`,
		w.Organization, w.Delivery, w.N, tx.Time(tx.Now), int16(w.Removal))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `delete from delivery_written
		where organization_id = $1 and delivery_id = $2 and n = $3 and removed_at is not null
		and not exists (select 1 from delivery_deliveries d where d.organization_id = $1 and d.id = $2)`,
		w.Organization, w.Delivery, w.N)
	return err
}
