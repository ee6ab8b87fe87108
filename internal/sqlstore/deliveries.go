package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// ContentColumns are what a DeliveryScanner reads of delivery_deliveries d.
const ContentColumns = `d.created_at, d.deadline, d.topic, d.priority, d.idempotency_key, d.correlation_id, d.trace_parent,
	d.tags, d.metadata, d.options, d.payload_name, d.payload_type, d.payload_size, d.payload_sha256, d.payload, d.payload_id,
	d.payload_source, d.payload_ref`

// DeliveryScanner reads deliveries from the rows of one query, after the given leading columns. It makes its targets once,
// because making them anew for each row costs more than reading it.
type DeliveryScanner struct {
	targets                                            []any
	d                                                  Delivery
	contentType                                        sql.NullString
	priority, size                                     sql.NullInt64
	topic, key, correlation, trace, name, id, src, ref sql.NullString
	tags, metadata, options, sha                       sql.RawBytes
}

// NewDeliveryScanner returns a scanner that first reads into leading.
func NewDeliveryScanner(leading ...any) *DeliveryScanner {
	s := &DeliveryScanner{}
	s.targets = append(slices.Clip(leading), Time{&s.d.CreatedAt}, Time{&s.d.Deadline}, &s.topic, &s.priority, &s.key, &s.correlation, &s.trace,
		&s.tags, &s.metadata, &s.options, &s.name, &s.contentType, &s.size, &s.sha, &s.d.Payload.Inline, &s.id, &s.src, &s.ref)
	return s
}

// Scan reads a row, and returns a nil delivery where its columns are null. What of it cannot be decoded is in Faulty: one
// such row must not stop those beside it.
func (s *DeliveryScanner) Scan(rows *sql.Rows) (*Delivery, error) {
	s.d.Payload.Inline = nil
	if err := rows.Scan(s.targets...); err != nil {
		return nil, err
	}
	if !s.contentType.Valid {
		return nil, nil //nolint:nilnil // there is none
	}
	d := s.d
	d.Topic, d.Priority, d.IdempotencyKey = s.topic.String, int(s.priority.Int64), s.key.String
	d.CorrelationID, d.TraceParent = s.correlation.String, s.trace.String
	d.Payload.Info = payload.Info{Name: s.name.String, ContentType: s.contentType.String, Size: s.size.Int64, SHA256: hex.EncodeToString(s.sha)}
	d.Payload.ID, d.Payload.Source, d.Payload.Ref = s.id.String, s.src.String, s.ref.String
	d.Faulty = errors.Join(Decode("tags", s.tags, &d.Tags), Decode("metadata", s.metadata, &d.Metadata), Decode("options", s.options, &d.Options))
	return &d, nil
}

// Decode reads a JSON column into v; nothing leaves it as it is.
func Decode(name string, raw []byte, v any) error {
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("its %s cannot be decoded: %w", name, err)
	}
	return nil
}

// TakenKey reads the delivery that holds an idempotency key, and whether it went to a fallback.
func (tx *Tx) TakenKey(ctx context.Context, organization, key string) (delivery string, fingerprint []byte, fallback bool, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		return rows.Scan(&delivery, &fingerprint, &fallback)
	}, `select k.delivery_id, k.fingerprint, coalesce((select d.fallback from delivery_deliveries d
			where d.organization_id = k.organization_id and d.id = k.delivery_id), $3)
		from delivery_idempotency k where k.organization_id = $1 and k.key = $2`, organization, key, false)
	return delivery, fingerprint, fallback, err
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
	var replayOf string
	var fallback sql.NullBool
	scanner := NewDeliveryScanner(Text{&replayOf}, &fallback)
	err = tx.Query(ctx, func(rows *sql.Rows) (err error) {
		if d, err = scanner.Scan(rows); d != nil {
			d.Organization, d.ID, d.ReplayOf, d.Fallback = organization, id, replayOf, fallback.Bool
		}
		return err
	}, `select d.replay_of, d.fallback, `+ContentColumns+` from delivery_deliveries d where d.organization_id = $1 and d.id = $2`, organization, id)
	return d, err
}

// Item is a pending item of a delivery with its destination.
type Item struct {
	Claimed
	Destination string
	Progress    int64    // bytes that the other side has, as far as is noted
	Of          LaneInfo // its destination
}

// Items lists the pending items of a delivery.
func (tx *Tx) Items(ctx context.Context, organization, delivery string) (items []Item, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var i Item
		err := rows.Scan(&i.Organization, &i.Delivery, &i.N, &i.Fence, &i.Lane, &i.Seq, &i.State, &i.Attempt, &i.Lost, &i.Cancel,
			Time{&i.RunAt}, Time{&i.Deadline}, &i.Destination, &i.Progress)
		items = append(items, i)
		return err
	}, `select q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq,
		case when q.lease <> 0 then 1 else q.state end, q.attempt, q.lost, q.cancel, q.run_at,
		q.deadline, d.id, coalesce(q.progress, 0)
		from delivery_queue q join delivery_destinations d on d.no = q.lane & 4294967295 and d.organization_id = q.organization_id
		where q.organization_id = $1 and q.delivery_id = $2 order by q.n`, organization, delivery)
	if err != nil || len(items) == 0 {
		return nil, err
	}
	nos := make([]int64, len(items))
	for i := range items {
		nos[i] = DestinationOf(items[i].Lane)
	}
	infos, err := tx.LaneInfos(ctx, nos)
	for i := range items {
		items[i].Of = infos[nos[i]]
	}
	return items, err
}

// ItemsOf lists the items of a delivery, pending or ended, by number. One that was retried has ended before.
func (tx *Tx) ItemsOf(ctx context.Context, organization, delivery string) (items []EnqueuedItem, err error) {
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

// Attempts lists the history of deliveries, item by item in the order it happened.
func (tx *Tx) Attempts(ctx context.Context, organization string, deliveries ...string) (attempts []Attempt, err error) {
	query, args := AttemptsQuery(organization, deliveries)
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var a Attempt
		var category, status sql.NullInt64
		var code, text string
		var took sql.NullFloat64
		var reference, detail []byte
		if err := rows.Scan(&a.Organization, &a.Delivery, &a.N, &a.Fence, &a.Destination, &a.Number, &a.State, &a.Reason, &category,
			&status, Text{&code}, Text{&text}, &took, Time{&a.EndedAt}, Time{&a.NextAt}, &reference, &detail); err != nil {
			return err
		}
		if category.Valid {
			a.Failure = &Failure{handler.Category(category.Int64), int(status.Int64), code, text}
		}
		if a.Took = NotBegun; took.Valid {
			a.Took = time.Duration(took.Float64 * float64(time.Second)).Round(time.Microsecond)
		}
		attempts = append(attempts, a)
		last := &attempts[len(attempts)-1]
		return errors.Join(Decode("reference", reference, &last.Reference), Decode("detail", detail, &last.Detail))
	}, query, args...)
	slices.SortStableFunc(attempts, func(a, b Attempt) int {
		return cmp.Or(cmp.Compare(a.Delivery, b.Delivery), cmp.Compare(a.N, b.N), cmp.Compare(a.Fence, b.Fence))
	})
	return attempts, err
}

// AttemptsQuery is the query of Attempts, with $1 placeholders. It is not ordered: of several deliveries, an index gives
// the order only to who reads all of the organization's.
func AttemptsQuery(organization string, deliveries []string) (query string, args []any) {
	in, args := among(organization, deliveries)
	return `select organization_id, delivery_id, n, fence, destination_id, attempt, state, reason, category, status_code, code, error,
		took, ended_at, next_at, reference, detail
		from delivery_attempts where organization_id = $1 and delivery_id ` + in, args
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
		where q.organization_id = $1 and q.delivery_id = $2 and q.n = $3 and q.fence = $4 and q.lease <> 0
		on conflict (organization_id, delivery_id, n) do update set value = excluded.value`,
		k.Organization, k.Delivery, k.N, k.Fence, tx.s.JSON(value))
	return n > 0, err
}
