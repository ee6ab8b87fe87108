package sqlite

import (
	"context"
	"database/sql"
	"encoding/hex"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
	"github.com/deliverykit/delivery/queue"
)

// numbered is an item with the number of its destination.
type numbered struct {
	queuestore.NewItem
	no int64
}

// Enqueue implements [queuestore.Native]. It finds all destinations before it inserts anything.
func (d Native) Enqueue(
	ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []queuestore.NewDelivery,
) ([]queuestore.Enqueued, error) {
	if now.IsZero() {
		now = time.Now().UTC()
	}
	if _, err := sqlite.Next(ctx, tx, 0); err != nil { // begin with a write
		return nil, err
	}
	batch, err := queuestore.Resolve(ctx, d, tx, organization, now, batch)
	if err != nil {
		return nil, err
	}
	results := make([]queuestore.Enqueued, len(batch))
	items := make([][]numbered, len(batch))
	found := make([]map[string]bool, len(batch))
	total := 0
	for i, n := range batch {
		if items[i], err = number(ctx, tx, organization, n.Items); err != nil {
			return nil, err
		}
		found[i] = map[string]bool{}
		for k, item := range items[i] {
			found[i][item.Destination] = true
			results[i].Items = append(results[i].Items,
				queuestore.EnqueuedItem{N: k + 1, Destination: item.Destination, Fallback: n.Fallback})
		}
		total += len(items[i])
	}
	queuestore.NoteMissing(batch, results, found)
	if slices.ContainsFunc(results, func(r queuestore.Enqueued) bool { return len(r.Missing) > 0 }) {
		return results, nil
	}
	seq, err := sqlite.Next(ctx, tx, total)
	if err != nil {
		return nil, err
	}
	for i, n := range batch {
		if results[i].Taken, err = d.take(ctx, tx, organization, now, n); err != nil {
			return nil, err
		}
		if results[i].Taken {
			continue
		}
		if err := d.insert(ctx, tx, organization, now, n); err != nil {
			return nil, err
		}
		if err := d.insertItems(ctx, tx, organization, now, n, items[i], seq); err != nil {
			return nil, err
		}
		seq += int64(len(items[i]))
	}
	return results, nil
}

// insertItems inserts the items of a delivery with consecutive numbers from seq.
func (d Native) insertItems(
	ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, n queuestore.NewDelivery,
	items []numbered, seq int64,
) error {
	for k, item := range items {
		state, runAt := queue.Ready, now
		if item.NotBefore.After(now) {
			state, runAt = queue.Scheduled, item.NotBefore
		}
		_, err := tx.ExecContext(ctx, `insert into delivery_queue
			(organization_id, delivery_id, n, lane, seq, run_at, state, deadline)
			values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)`,
			organization, n.ID, k+1, queuestore.Lane(queuestore.Rank(item.Priority), item.no), seq+int64(k),
			d.Time(runAt), int(state), d.Time(n.Deadline))
		if err != nil {
			return err
		}
	}
	return nil
}

// number finds the destinations of items, and leaves out items whose destination does not exist.
func number(
	ctx context.Context, tx sqlstore.Execer, organization string, wanted []queuestore.NewItem,
) (items []numbered, err error) {
	for _, item := range wanted {
		err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
			n := numbered{NewItem: item}
			err := rows.Scan(&n.no)
			items = append(items, n)
			return err
		}, `select no from delivery_destinations
			where organization_id = ?1 and id = ?2 and deleted_at is null and draining_at is null`,
			organization, item.Destination)
		if err != nil {
			return nil, err
		}
	}
	return items, nil
}

// take takes the idempotency key of a delivery, and reports whether another delivery has it.
func (d Native) take(
	ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, n queuestore.NewDelivery,
) (taken bool, err error) {
	if n.IdempotencyKey == "" {
		return false, nil
	}
	r, err := tx.ExecContext(ctx, `insert into delivery_idempotency as k
		(organization_id, key, fingerprint, delivery_id, expires_at)
		values (?1, ?2, ?3, ?4, ?5)
		on conflict (organization_id, key) do update
		set fingerprint = excluded.fingerprint, delivery_id = excluded.delivery_id, expires_at = excluded.expires_at
		where k.expires_at <= ?6`,
		organization, n.IdempotencyKey, n.Fingerprint, n.ID, d.Time(now.Add(n.KeyExpires)), d.Time(now))
	if err != nil {
		return false, err
	}
	rows, err := r.RowsAffected()
	return rows == 0, err
}

func (d Native) insert(
	ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, n queuestore.NewDelivery,
) error {
	sha, err := hex.DecodeString(n.Payload.SHA256)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `insert into delivery_deliveries (organization_id, id, created_at, deadline, priority,
		idempotency_key, topic, correlation_id, trace_parent, tags, metadata, options, payload_name, payload_type,
		payload_size, payload_sha256, payload, payload_id, payload_source, payload_ref, fallback)
		values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)`,
		organization, n.ID, d.Time(now), d.Time(n.Deadline), n.Priority, sqlstore.Null(n.IdempotencyKey),
		sqlstore.Null(n.Topic),
		sqlstore.Null(n.CorrelationID), sqlstore.Null(n.TraceParent), d.JSON(sqlstore.Encode(n.Tags)),
		d.JSON(sqlstore.Encode(n.Metadata)), d.JSON(sqlstore.Encode(n.Options)), sqlstore.Null(n.Payload.Name),
		n.Payload.ContentType, n.Payload.Size, sha, n.Payload.Inline, sqlstore.Null(n.Payload.ID),
		sqlstore.Null(n.Payload.Source), sqlstore.Null(n.Payload.Ref), sql.NullBool{Bool: true, Valid: n.Fallback})
	return err
}
