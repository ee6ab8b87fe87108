package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"time"

	"github.com/deliverykit/delivery/destination"
)

// Destination is a stored destination with what its owner does not see.
type Destination struct {
	destination.Destination
	No            int64
	ConfigVersion int64  // what Sealed is bound to
	Sealed        []byte // the whole config, if it has secrets
	Deleted       bool
}

const destinationColumns = `d.no, d.version, d.config_version, d.created_at, d.updated_at, d.deleted_at is not null, d.id,
	d.is_default, d.disabled, d.disabled_by_service, d.organization_id, d.type, d.label, d.description, d.icon, d.instructions, d.disabled_reason,
	d.tags, d.subscription, d.default_topics, d.fallback, d.draining_at, d.config, d.sealed, d.limits, d.retry, d.breaker, d.paused_at, coalesce(h.failures, 0), h.failing_since, h.last_failure_at,
	coalesce(h.breaker, 0), h.breaker_at, h.probe_at`

const destinationTables = ` from delivery_destinations d left join delivery_health h on h.destination_no = d.no `

func scanDestination(rows *sql.Rows) (*Destination, error) {
	var d Destination
	var tags, subscription, topics, limits, policy, breaker []byte
	var h Health
	err := rows.Scan(&d.No, &d.Version, &d.ConfigVersion, Time{&d.CreatedAt}, Time{&d.UpdatedAt}, &d.Deleted, &d.ID, &d.Default,
		&d.Disabled, &d.DisabledByService, &d.Organization, &d.Type, &d.Label, &d.Description, &d.Icon, &d.Instructions, &d.DisabledReason, &tags,
		&subscription, &topics, &d.Fallback, Time{&d.DrainingAt},
		(*[]byte)(&d.Config), &d.Sealed, &limits, &policy, &breaker, Time{&d.PausedAt}, &h.Failures, Time{&h.FailingSince}, Time{&h.LastFailure}, &h.Breaker,
		Time{&h.BreakerAt}, Time{&h.ProbeAt})
	if err != nil {
		return nil, err
	}
	d.show(&h)
	return &d, errors.Join(Decode("tags", tags, &d.Tags), Decode("limits", limits, &d.Limits), Decode("retry", policy, &d.Retry),
		Decode("breaker", breaker, &d.Breaker), Decode("subscription", subscription, &d.Subscription), Decode("default topics", topics, &d.DefaultTopics))
}

// InsertDestination stores a new destination.
func (tx *Tx) InsertDestination(ctx context.Context, d *Destination) error {
	err := tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&d.No) }, `insert into delivery_destinations
		(organization_id, id, created_at, updated_at, is_default, disabled, type, label, description, icon, instructions, tags,
		config, sealed, limits, retry, breaker, subscription, default_topics, fallback)
		values ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) returning no`,
		d.Organization, d.ID, tx.s.Time(tx.Now), d.Default, d.Disabled, d.Type, d.Label, d.Description, d.Icon, d.Instructions,
		tx.s.JSON(Encode(d.Tags)), tx.s.JSON(d.Config), d.Sealed, tx.s.JSON(Encode(d.Limits)), tx.s.JSON(Encode(d.Retry)),
		tx.s.JSON(Encode(d.Breaker)), tx.s.JSON(Encode(d.Subscription)), tx.s.JSON(Encode(d.DefaultTopics)), d.Fallback)
	if err != nil {
		return err
	}
	d.Version, d.ConfigVersion, d.CreatedAt, d.UpdatedAt = 1, 1, tx.Now, tx.Now
	return nil
}

// UpdateDestination stores a changed destination if its version is still d.Version, and moves that on. It reports
// whether it did. A config whose ConfigVersion is the stored one is left alone: its keys may be rotated meanwhile.
func (tx *Tx) UpdateDestination(ctx context.Context, d *Destination) (bool, error) {
	n, err := tx.Exec(ctx, `update delivery_destinations set version = version + 1, config_version = $4, updated_at = $5,
		is_default = $6, disabled = $7, label = $8, description = $9, icon = $10, instructions = $11, disabled_reason = $12, tags = $13,
		config = case when config_version = $4 then config else $14 end, sealed = case when config_version = $4 then sealed else $15 end,
		limits = $16, retry = $17, breaker = $18, subscription = $19, default_topics = $20, fallback = $21, disabled_by_service = $22
		where organization_id = $1 and id = $2 and version = $3 and deleted_at is null`,
		d.Organization, d.ID, d.Version, d.ConfigVersion, tx.s.Time(tx.Now), d.Default, d.Disabled, d.Label, d.Description, d.Icon,
		d.Instructions, d.DisabledReason, tx.s.JSON(Encode(d.Tags)), tx.s.JSON(d.Config), d.Sealed,
		tx.s.JSON(Encode(d.Limits)), tx.s.JSON(Encode(d.Retry)), tx.s.JSON(Encode(d.Breaker)),
		tx.s.JSON(Encode(d.Subscription)), tx.s.JSON(Encode(d.DefaultTopics)), d.Fallback, d.DisabledByService)
	if err != nil || n == 0 {
		return false, err
	}
	d.Version++
	d.UpdatedAt = tx.Now
	return true, nil
}

// PauseDestination holds a destination's items, or lets them go: no change of version.
func (tx *Tx) PauseDestination(ctx context.Context, organization, id string, paused bool) (found bool, err error) {
	var at time.Time
	if paused {
		at = tx.Now
	}
	n, err := tx.Exec(ctx, `update delivery_destinations set paused_at = $3
		where organization_id = $1 and id = $2 and deleted_at is null`, organization, id, tx.s.Time(at))
	return n > 0, err
}

// DeleteDestination takes a destination out of use. Its row stays, for history, without config and credentials.
func (tx *Tx) DeleteDestination(ctx context.Context, organization, id string) error {
	_, err := tx.Exec(ctx, `update delivery_destinations set deleted_at = $3, version = version + 1, is_default = $4, draining_at = null,
		subscription = null, config = '{}', sealed = null where organization_id = $1 and id = $2`, organization, id, tx.s.Time(tx.Now), false)
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

// DestinationFilter selects destinations: those that fit all fields that are set.
type DestinationFilter struct {
	Type              string
	Disabled, Default *bool
}

// Destinations lists destinations in the order they were created, after the given id.
func (tx *Tx) Destinations(ctx context.Context, organization, after string, f DestinationFilter, limit int) ([]*Destination, error) {
	if after == "" {
		after = "00000000-0000-0000-0000-000000000000"
	}
	where := `where d.organization_id = $1 and d.id > $2 and d.deleted_at is null`
	args := []any{organization, after, limit}
	add := func(condition string, arg any) {
		args = append(args, arg)
		where += condition + strconv.Itoa(len(args))
	}
	if f.Type != "" {
		add(` and d.type = $`, f.Type)
	}
	if f.Disabled != nil {
		add(` and d.disabled = $`, *f.Disabled)
	}
	if f.Default != nil {
		add(` and d.is_default = $`, *f.Default)
	}
	return tx.destinations(ctx, where+` order by d.id limit $3`, args...)
}

// DrainDestination has a destination take nothing new.
func (tx *Tx) DrainDestination(ctx context.Context, organization, id string) error {
	_, err := tx.Exec(ctx, `update delivery_destinations set draining_at = coalesce(draining_at, $3), version = version + 1,
		updated_at = $3, is_default = $4, subscription = null
		where organization_id = $1 and id = $2 and deleted_at is null`, organization, id, tx.s.Time(tx.Now), false)
	return err
}

// DrainingDestinations lists destinations of all organizations that are to be deleted once nothing waits for them, by number
// after the given one: a system statement.
func (tx *Tx) DrainingDestinations(ctx context.Context, after int64, limit int) ([]*Destination, error) {
	return tx.destinations(ctx, `where d.no > $1 and d.draining_at is not null and d.deleted_at is null order by d.no limit $2`, after, limit)
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

// DestinationsByNo reads destinations by number, a system statement as LaneInfos.
func (tx *Tx) DestinationsByNo(ctx context.Context, nos []int64) ([]*Destination, error) {
	return tx.destinations(ctx, `where d.no in (`+list(nos)+`)`)
}

// DestinationsOfType lists destinations of a type of all organizations by number, after the given one: a system statement.
func (tx *Tx) DestinationsOfType(ctx context.Context, typ string, after int64, limit int) ([]*Destination, error) {
	return tx.destinations(ctx, `where d.no > $1 and d.type = $2 and d.deleted_at is null order by d.no limit $3`, after, typ, limit)
}

// DestinationsByID reads destinations, deleted ones too.
func (tx *Tx) DestinationsByID(ctx context.Context, organization string, ids []string) ([]*Destination, error) {
	in, args := among(organization, ids)
	return tx.destinations(ctx, `where d.organization_id = $1 and d.id `+in, args...)
}
