package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/queue"
)

// Destination is a stored destination with what its owner does not see.
type Destination struct {
	destination.Destination
	No            int64
	ConfigVersion int64  // what Sealed is bound to
	Sealed        []byte // the whole config, if it has secrets
	Deleted       bool
}

// forever is the end of a hold without end: databases and drivers differ on infinity.
var forever = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

const destinationColumns = `d.no, d.version, d.config_version, d.created_at, d.updated_at, d.deleted_at is not null, d.id,
	d.is_default, d.disabled, d.organization_id, d.type, d.label, d.description, d.icon, d.instructions, d.disabled_reason,
	d.tags, d.config, d.sealed, d.limits, d.retry, h.failures, h.failing_since, h.last_failure_at`

const destinationTables = ` from delivery_destinations d left join delivery_health h on h.destination_no = d.no `

func scanDestination(rows *sql.Rows) (*Destination, error) {
	var d Destination
	var tags, limits, policy []byte
	var failures sql.NullInt64
	err := rows.Scan(&d.No, &d.Version, &d.ConfigVersion, Time{&d.CreatedAt}, Time{&d.UpdatedAt}, &d.Deleted, &d.ID, &d.Default,
		&d.Disabled, &d.Organization, &d.Type, &d.Label, &d.Description, &d.Icon, &d.Instructions, &d.DisabledReason, &tags,
		(*[]byte)(&d.Config), &d.Sealed, &limits, &policy, &failures, Time{&d.Health.FailingSince}, Time{&d.Health.LastFailure})
	if err != nil {
		return nil, err
	}
	d.Health.ConsecutiveFailures = int(failures.Int64)
	return &d, errors.Join(decode("tags", tags, &d.Tags), decode("limits", limits, &d.Limits), decode("retry", policy, &d.Retry))
}

// InsertDestination stores a new destination.
func (tx *Tx) InsertDestination(ctx context.Context, d *Destination) error {
	err := tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&d.No) }, `insert into delivery_destinations
		(organization_id, id, created_at, updated_at, is_default, disabled, type, label, description, icon, instructions, tags,
		config, sealed, limits, retry)
		values ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) returning no`,
		d.Organization, d.ID, tx.s.Time(tx.Now), d.Default, d.Disabled, d.Type, d.Label, d.Description, d.Icon, d.Instructions,
		tx.s.JSON(Encode(d.Tags)), tx.s.JSON(d.Config), d.Sealed, tx.s.JSON(Encode(d.Limits)), tx.s.JSON(Encode(d.Retry)))
	if err != nil {
		return err
	}
	d.Version, d.ConfigVersion, d.CreatedAt, d.UpdatedAt = 1, 1, tx.Now, tx.Now
	return tx.gate(ctx, d)
}

// UpdateDestination stores a changed destination if its version is still d.Version, and moves that on. It reports
// whether it did.
func (tx *Tx) UpdateDestination(ctx context.Context, d *Destination) (bool, error) {
	n, err := tx.Exec(ctx, `update delivery_destinations set version = version + 1, config_version = $4, updated_at = $5,
		is_default = $6, disabled = $7, label = $8, description = $9, icon = $10, instructions = $11, disabled_reason = $12, tags = $13,
		config = $14, sealed = $15, limits = $16, retry = $17
		where organization_id = $1 and id = $2 and version = $3 and deleted_at is null`,
		d.Organization, d.ID, d.Version, d.ConfigVersion, tx.s.Time(tx.Now), d.Default, d.Disabled, d.Label, d.Description, d.Icon,
		d.Instructions, d.DisabledReason, tx.s.JSON(Encode(d.Tags)), tx.s.JSON(d.Config), d.Sealed,
		tx.s.JSON(Encode(d.Limits)), tx.s.JSON(Encode(d.Retry)))
	if err != nil || n == 0 {
		return false, err
	}
	d.Version++
	d.UpdatedAt = tx.Now
	return true, tx.gate(ctx, d)
}

// gate makes the destination's gate say what the destination says.
func (tx *Tx) gate(ctx context.Context, d *Destination) error {
	if !d.Disabled {
		_, err := tx.Exec(ctx, `update delivery_gates set blocked_until = null, reason = 0
			where destination_no = $1 and organization_id = $2 and reason = $3`, d.No, d.Organization, int(queue.Disabled))
		return err
	}
	_, err := tx.Exec(ctx, `insert into delivery_gates (destination_no, organization_id, blocked_until, reason)
		values ($1, $2, $3, $4) on conflict (destination_no) do update set blocked_until = excluded.blocked_until, reason = excluded.reason`,
		d.No, d.Organization, tx.s.Time(forever), int(queue.Disabled))
	return err
}

// DeleteDestination takes a destination out of use. Its row stays, for history, without config and credentials.
func (tx *Tx) DeleteDestination(ctx context.Context, organization, id string) error {
	_, err := tx.Exec(ctx, `update delivery_destinations set deleted_at = $3, version = version + 1, is_default = $4,
		config = '{}', sealed = null where organization_id = $1 and id = $2`, organization, id, tx.s.Time(tx.Now), false)
	return err
}

// Destination reads a destination, nil if the organization has none of that id. A deleted one is still read.
func (tx *Tx) Destination(ctx context.Context, organization, id string) (*Destination, error) {
	all, err := tx.destinations(ctx, `where d.organization_id = $1 and d.id = $2`, organization, id)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[0], nil
}

// Destinations lists destinations in the order they were created, after the given id.
func (tx *Tx) Destinations(ctx context.Context, organization, after string, limit int) ([]*Destination, error) {
	if after == "" {
		after = "00000000-0000-0000-0000-000000000000"
	}
	return tx.destinations(ctx, `where d.organization_id = $1 and d.id > $2 and d.deleted_at is null order by d.id limit $3`,
		organization, after, limit)
}

// DestinationsOf reads the destinations, deleted ones too, that a delivery's items and history name.
func (tx *Tx) DestinationsOf(ctx context.Context, organization, delivery string) ([]*Destination, error) {
	return tx.destinations(ctx, `where d.organization_id = $1 and (
		d.id in (select a.destination_id from delivery_attempts a where a.organization_id = $1 and a.delivery_id = $2)
		or d.no in (select q.lane & 4294967295 from delivery_queue q where q.organization_id = $1 and q.delivery_id = $2))`,
		organization, delivery)
}

func (tx *Tx) destinations(ctx context.Context, where string, args ...any) (all []*Destination, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		d, err := scanDestination(rows)
		all = append(all, d)
		return err
	}, `select `+destinationColumns+destinationTables+where, args...)
	return all, err
}

// LaneInfo is what a claim needs to know of a destination.
type LaneInfo struct {
	No                     int64
	Organization, ID, Type string
	Version                int64
	BlockedUntil           time.Time
	Failures               int
}

// LaneInfos reads what a claim needs to know of destinations, by number. It is one of the queue's system statements: it
// spans organizations.
func (tx *Tx) LaneInfos(ctx context.Context, nos []int64) (map[int64]LaneInfo, error) {
	all := make(map[int64]LaneInfo, len(nos))
	err := tx.Query(ctx, func(rows *sql.Rows) error {
		var l LaneInfo
		err := rows.Scan(&l.No, &l.Organization, &l.ID, &l.Type, &l.Version, Time{&l.BlockedUntil}, &l.Failures)
		all[l.No] = l
		return err
	}, `select d.no, d.organization_id, d.id, d.type, d.version, g.blocked_until, coalesce(h.failures, 0)
		from delivery_destinations d
		left join delivery_gates g on g.destination_no = d.no left join delivery_health h on h.destination_no = d.no
		where d.no in (`+list(nos)+`)`)
	return all, err
}

// DestinationsByNo reads destinations by number, a system statement as LaneInfos.
func (tx *Tx) DestinationsByNo(ctx context.Context, nos []int64) ([]*Destination, error) {
	return tx.destinations(ctx, `where d.no in (`+list(nos)+`)`)
}

// DestinationsOfType lists destinations of a type of all organizations by number, after the given one: a system statement.
func (tx *Tx) DestinationsOfType(ctx context.Context, typ string, after int64, limit int) ([]*Destination, error) {
	return tx.destinations(ctx, `where d.no > $1 and d.type = $2 and d.deleted_at is null order by d.no limit $3`, after, typ, limit)
}

// list writes numbers as a list, in place of parameters: no driver agrees with another on those.
func list(nos []int64) string {
	b := make([]byte, 0, 8*len(nos))
	for i, no := range nos {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, no, 10)
	}
	return string(b)
}
