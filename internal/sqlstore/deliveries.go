package sqlstore

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/deliverykit/delivery/payload"
)

// ContentColumns are the columns of delivery_deliveries d that a [DeliveryScanner] reads.
const ContentColumns = `d.created_at, d.deadline, d.topic, d.priority, d.idempotency_key, d.correlation_id,
	d.trace_parent, d.tags, d.metadata, d.options, d.payload_name, d.payload_type, d.payload_size, d.payload_sha256,
	d.payload, d.payload_id, d.payload_source, d.payload_ref`

// DeliveryScanner reads deliveries from the rows of one query, after other columns. It makes the
// targets of a scan once: to make them for each row costs more than to read it.
type DeliveryScanner struct {
	targets                                            []any
	d                                                  DeliveryRow
	contentType                                        sql.NullString
	priority, size                                     sql.NullInt64
	topic, key, correlation, trace, name, id, src, ref sql.NullString
	tags, metadata, options, sha                       sql.RawBytes
}

// NewDeliveryScanner returns a scanner that reads the columns before a delivery into leading.
func NewDeliveryScanner(leading ...any) *DeliveryScanner {
	s := &DeliveryScanner{}
	s.targets = append(slices.Clip(leading), Time{&s.d.CreatedAt}, Time{&s.d.Deadline}, &s.topic, &s.priority, &s.key,
		&s.correlation, &s.trace, &s.tags, &s.metadata, &s.options, &s.name, &s.contentType, &s.size, &s.sha,
		&s.d.Payload.Inline, &s.id, &s.src, &s.ref)
	return s
}

// Scan reads a row, and returns nil if the columns of the delivery are null. An error of decoding
// is in Faulty: one such row must not stop the others.
func (s *DeliveryScanner) Scan(rows *sql.Rows) (*DeliveryRow, error) {
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
	d.Payload.Info = payload.Info{
		Name: s.name.String, ContentType: s.contentType.String, Size: s.size.Int64, SHA256: hex.EncodeToString(s.sha),
	}
	d.Payload.ID, d.Payload.Source, d.Payload.Ref = s.id.String, s.src.String, s.ref.String
	d.Faulty = errors.Join(Decode("tags", s.tags, &d.Tags), Decode("metadata", s.metadata, &d.Metadata),
		Decode("options", s.options, &d.Options))
	return &d, nil
}

// Decode reads a JSON column into v. An empty one leaves v as it is.
func Decode(name string, raw []byte, v any) error {
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("its %s cannot be decoded: %w", name, err)
	}
	return nil
}

// Delivery reads a delivery. It returns nil if the organization has none of that id.
func (tx *Tx) Delivery(ctx context.Context, organization, id string) (d *DeliveryRow, err error) {
	var replayOf string
	var fallback sql.NullBool
	scanner := NewDeliveryScanner(Text{&replayOf}, &fallback)
	err = tx.Query(ctx, func(rows *sql.Rows) (err error) {
		if d, err = scanner.Scan(rows); d != nil {
			d.Organization, d.ID, d.ReplayOf, d.Fallback = organization, id, replayOf, fallback.Bool
		}
		return err
	}, `select d.replay_of, d.fallback, `+ContentColumns+` from delivery_deliveries d
		where d.organization_id = $1 and d.id = $2`, organization, id)
	return d, err
}

// LockDelivery keeps a delivery from being removed until the transaction ends, and reports whether
// it is there.
func (tx *Tx) LockDelivery(ctx context.Context, organization, id string) (found bool, err error) {
	err = tx.Query(ctx, func(*sql.Rows) error {
		found = true
		return nil
	}, `select 1 from delivery_deliveries d where d.organization_id = $1 and d.id = $2`+tx.Locking("d"),
		organization, id)
	return found, err
}

// LinkReplay records that a delivery repeats another one.
func (tx *Tx) LinkReplay(ctx context.Context, organization, id, replayOf string) error {
	_, err := tx.Exec(ctx, `update delivery_deliveries set replay_of = $3 where organization_id = $1 and id = $2`,
		organization, id, replayOf)
	return err
}

// Summaries reads deliveries by id, without their options, tags, metadata and content.
func (tx *Tx) Summaries(ctx context.Context, organization string, ids []string) (map[string]DeliveryRow, error) {
	all := make(map[string]DeliveryRow, len(ids))
	query, args := SummariesQuery(organization, ids)
	err := tx.Query(ctx, func(rows *sql.Rows) error {
		d := DeliveryRow{Organization: organization}
		var sha []byte
		err := rows.Scan(&d.ID, Time{&d.CreatedAt}, Time{&d.Deadline}, Text{&d.Topic}, &d.Priority,
			Text{&d.CorrelationID},
			Text{&d.Payload.Name}, &d.Payload.ContentType, &d.Payload.Size, &sha)
		d.Payload.SHA256 = hex.EncodeToString(sha)
		all[d.ID] = d
		return err
	}, query, args...)
	return all, err
}

// SummariesQuery is the query of [Tx.Summaries], with $1 placeholders.
func SummariesQuery(organization string, ids []string) (query string, args []any) {
	in, args := Among(organization, ids)
	return `select id, created_at, deadline, topic, priority, correlation_id, payload_name, payload_type, payload_size,
		payload_sha256 from delivery_deliveries where organization_id = $1 and id ` + in, args
}
