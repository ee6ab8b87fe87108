package sqlstore

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/deliverykit/delivery/handler"
)

// DeliveryColumns are what ScanDelivery reads.
const DeliveryColumns = `d.organization_id, d.id, d.created_at, d.deadline, d.topic, d.priority, d.idempotency_key,
	d.correlation_id, d.trace_parent, d.tags, d.metadata, d.options, d.payload_name, d.payload_type, d.payload_size,
	d.payload_sha256, d.payload, d.payload_id, d.payload_source, d.payload_ref`

// ScanDelivery reads a delivery, after the given leading columns. What of it cannot be decoded is in Faulty: one such row
// must not stop those beside it.
func ScanDelivery(rows *sql.Rows, leading ...any) (*Delivery, error) {
	var d Delivery
	var tags, metadata, options, sha []byte
	err := rows.Scan(append(leading, &d.Organization, &d.ID, Time{&d.CreatedAt}, Time{&d.Deadline}, Text{&d.Topic}, &d.Priority,
		Text{&d.IdempotencyKey}, Text{&d.CorrelationID}, Text{&d.TraceParent}, &tags, &metadata, &options,
		Text{&d.Payload.Name}, &d.Payload.ContentType, &d.Payload.Size, &sha, &d.Payload.Inline, Text{&d.Payload.ID},
		Text{&d.Payload.Source}, Text{&d.Payload.Ref})...)
	if err != nil {
		return nil, err
	}
	d.Payload.SHA256 = hex.EncodeToString(sha)
	d.Faulty = errors.Join(decode("tags", tags, &d.Tags), decode("metadata", metadata, &d.Metadata), decode("options", options, &d.Options))
	return &d, nil
}

func decode(name string, raw []byte, v any) error {
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("its %s cannot be decoded: %w", name, err)
	}
	return nil
}

// TakenKey reads the delivery that holds an idempotency key.
func (tx *Tx) TakenKey(ctx context.Context, organization, key string) (delivery string, fingerprint []byte, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		return rows.Scan(&delivery, &fingerprint)
	}, `select delivery_id, fingerprint from delivery_idempotency where organization_id = $1 and key = $2`, organization, key)
	return delivery, fingerprint, err
}

// Withdraw removes what Enqueue has just inserted in the same transaction.
func (tx *Tx) Withdraw(ctx context.Context, organization, delivery string) error {
	for _, from := range []string{
		`delivery_queue where organization_id = $1 and delivery_id = $2`,
		`delivery_deliveries where organization_id = $1 and id = $2`,
		`delivery_idempotency where organization_id = $1 and delivery_id = $2`,
	} {
		if _, err := tx.Exec(ctx, `delete from `+from, organization, delivery); err != nil {
			return err
		}
	}
	return nil
}

// Delivery reads a delivery, nil if the organization has none of that id.
func (tx *Tx) Delivery(ctx context.Context, organization, id string) (d *Delivery, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) (err error) {
		d, err = ScanDelivery(rows)
		return err
	}, `select `+DeliveryColumns+` from delivery_deliveries d where d.organization_id = $1 and d.id = $2`, organization, id)
	return d, err
}

// Item is a pending item of a delivery with its destination.
type Item struct {
	Claimed
	Destination string
	Disabled    bool
}

// Items lists the pending items of a delivery.
func (tx *Tx) Items(ctx context.Context, organization, delivery string) (items []Item, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var i Item
		err := rows.Scan(&i.Organization, &i.Delivery, &i.N, &i.Fence, &i.Lane, &i.Seq, &i.State, &i.Attempt, &i.Lost, &i.Cancel,
			Time{&i.RunAt}, Time{&i.Deadline}, &i.Destination, &i.Disabled)
		items = append(items, i)
		return err
	}, `select q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq, q.state, q.attempt, q.lost, q.cancel, q.run_at,
		q.deadline, d.id, d.disabled
		from delivery_queue q join delivery_destinations d on d.no = q.lane & 4294967295 and d.organization_id = q.organization_id
		where q.organization_id = $1 and q.delivery_id = $2 order by q.n`, organization, delivery)
	return items, err
}

// ItemsOf lists the items of a delivery, pending or ended, by number.
func (tx *Tx) ItemsOf(ctx context.Context, organization, delivery string) (items []EnqueuedItem, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var i EnqueuedItem
		err := rows.Scan(&i.N, &i.Destination)
		items = append(items, i)
		return err
	}, `select q.n, d.id from delivery_queue q
		join delivery_destinations d on d.no = q.lane & 4294967295 and d.organization_id = q.organization_id
		where q.organization_id = $1 and q.delivery_id = $2
		union all
		select a.n, a.destination_id from delivery_attempts a
		where a.organization_id = $1 and a.delivery_id = $2 and a.state >= 3
		order by 1`, organization, delivery)
	return items, err
}

// Attempts lists the history of a delivery, item by item in the order it happened.
func (tx *Tx) Attempts(ctx context.Context, organization, delivery string) (attempts []Attempt, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var a Attempt
		var category, status sql.NullInt64
		var code, text string
		var reference, detail []byte
		if err := rows.Scan(&a.Organization, &a.Delivery, &a.N, &a.Fence, &a.Destination, &a.Number, &a.State, &a.Reason, &category,
			&status, Text{&code}, Text{&text}, Time{&a.StartedAt}, Time{&a.EndedAt}, Time{&a.NextAt}, &reference, &detail); err != nil {
			return err
		}
		if category.Valid {
			a.Failure = &Failure{handler.Category(category.Int64), int(status.Int64), code, text}
		}
		attempts = append(attempts, a)
		last := &attempts[len(attempts)-1]
		return errors.Join(decode("reference", reference, &last.Reference), decode("detail", detail, &last.Detail))
	}, `select organization_id, delivery_id, n, fence, destination_id, attempt, state, reason, category, status_code, code, error,
		started_at, ended_at, next_at, reference, detail
		from delivery_attempts where organization_id = $1 and delivery_id = $2 order by n, fence`, organization, delivery)
	return attempts, err
}

// Checkpoint reads what an earlier attempt left, nil if nothing.
func (tx *Tx) Checkpoint(ctx context.Context, k Key) (value []byte, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&value) },
		`select value from delivery_checkpoints where organization_id = $1 and delivery_id = $2 and n = $3`,
		k.Organization, k.Delivery, k.N)
	return value, err
}

// SaveCheckpoint keeps value for the next attempt, if the fence still holds; it reports whether it did.
func (tx *Tx) SaveCheckpoint(ctx context.Context, k Key, value []byte) (bool, error) {
	n, err := tx.Exec(ctx, `insert into delivery_checkpoints (organization_id, delivery_id, n, value)
		select q.organization_id, q.delivery_id, q.n, $5 from delivery_queue q
		where q.organization_id = $1 and q.delivery_id = $2 and q.n = $3 and q.fence = $4 and q.state = 1
		on conflict (organization_id, delivery_id, n) do update set value = excluded.value`,
		k.Organization, k.Delivery, k.N, k.Fence, tx.s.JSON(value))
	return n > 0, err
}
