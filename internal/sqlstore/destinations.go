package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"time"

	"github.com/deliverykit/delivery/destination"
)

// DestinationRow is a stored destination with what its owner does not see.
//
// It has two versions. Version grows by one with every change that its owner or the service makes:
// not with a pause, and not when the config is sealed again with another key. ConfigVersion is the
// Version that the last change of the config led to, and Sealed can be opened with that number
// alone: it is part of what the ciphertext is bound to. So three steps change a config:
//
//  1. Set ConfigVersion to [DestinationRow.NextVersion], which the change leads to.
//  2. Seal the new config, which binds it to ConfigVersion.
//  3. [Tx.SaveDestination] fails if Version is no longer the stored one. It writes Config and
//     Sealed only if ConfigVersion is not the stored one: otherwise they may have been sealed again
//     meanwhile, and stay.
type DestinationRow struct {
	destination.Destination
	No            int64  // the low half of its lanes
	ConfigVersion int64  // what Sealed is bound to
	Sealed        []byte // the whole config, nil if it has no secrets
	Deleted       bool
}

// NextVersion returns the version that the next change leads to.
func (d *DestinationRow) NextVersion() int64 { return d.Version + 1 }

const destinationColumns = `d.no, d.version, d.config_version, d.created_at, d.updated_at, d.deleted_at is not null,
	d.id, d.is_default, d.disabled, d.disabled_by_service, d.organization_id, d.type, d.label, d.description,
	d.icon, d.instructions, d.disabled_reason, d.tags, d.subscription, d.default_topics, d.fallback, d.draining_at,
	d.config, d.sealed, d.limits, d.retry, d.breaker, d.paused_at, coalesce(h.failures, 0), h.failing_since,
	h.last_failure_at, coalesce(h.breaker, 0), h.breaker_at, h.probe_at`

const destinationTables = ` from delivery_destinations d left join delivery_health h on h.destination_no = d.no `

func scanDestination(rows *sql.Rows) (*DestinationRow, error) {
	var d DestinationRow
	var tags, subscription, topics, limits, policy, breaker []byte
	h := &d.Health
	err := rows.Scan(&d.No, &d.Version, &d.ConfigVersion, Time{&d.CreatedAt}, Time{&d.UpdatedAt}, &d.Deleted, &d.ID,
		&d.Default, &d.Disabled, &d.DisabledByService, &d.Organization, &d.Type, &d.Label, &d.Description, &d.Icon,
		&d.Instructions, &d.DisabledReason, &tags, &subscription, &topics, &d.Fallback, Time{&d.DrainingAt},
		(*[]byte)(&d.Config), &d.Sealed, &limits, &policy, &breaker, Time{&d.PausedAt}, &h.ConsecutiveFailures,
		Time{&h.FailingSince}, Time{&h.LastFailure}, &h.Breaker, Time{&h.BreakerSince}, Time{&h.ProbeAt})
	if err != nil {
		return nil, err
	}
	h.Status = destination.StatusOf(h.ConsecutiveFailures, h.Breaker)
	return &d, errors.Join(Decode("tags", tags, &d.Tags), Decode("limits", limits, &d.Limits),
		Decode("retry", policy, &d.Retry), Decode("breaker", breaker, &d.Breaker),
		Decode("subscription", subscription, &d.Subscription), Decode("default topics", topics, &d.DefaultTopics))
}

// SelectDestinations reads the destinations d, with their health h, that the end of a query
// selects: its conditions from "where" on, its order and its limit.
func (tx *Tx) SelectDestinations(
	ctx context.Context, where string, args ...any,
) (all []*DestinationRow, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		d, err := scanDestination(rows)
		all = append(all, d)
		return err
	}, `select `+destinationColumns+destinationTables+where, args...)
	return all, err
}

// InsertDestination stores a new destination, and sets its number, its versions and its times.
func (tx *Tx) InsertDestination(ctx context.Context, d *DestinationRow) error {
	err := tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&d.No) }, `insert into delivery_destinations
		(organization_id, id, created_at, updated_at, is_default, disabled, type, label, description, icon,
		instructions, tags, config, sealed, limits, retry, breaker, subscription, default_topics, fallback)
		values ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) returning no`,
		d.Organization, d.ID, tx.Time(tx.Now), d.Default, d.Disabled, d.Type, d.Label, d.Description, d.Icon,
		d.Instructions, tx.JSON(Encode(d.Tags)), tx.JSON(d.Config), d.Sealed, tx.JSON(Encode(d.Limits)),
		tx.JSON(Encode(d.Retry)), tx.JSON(Encode(d.Breaker)), tx.JSON(Encode(d.Subscription)),
		tx.JSON(Encode(d.DefaultTopics)), d.Fallback)
	if err != nil {
		return err
	}
	d.Version, d.ConfigVersion, d.CreatedAt, d.UpdatedAt = 1, 1, tx.Now, tx.Now
	return nil
}

// SaveDestination stores a changed destination and returns it as it is stored, with its next
// version. It returns nil if d.Version is not the stored version any more, or the destination is
// deleted. It leaves d alone, so that a transaction can run again with it. The type says when the
// config is written.
func (tx *Tx) SaveDestination(ctx context.Context, d *DestinationRow) (*DestinationRow, error) {
	n, err := tx.Exec(ctx, `update delivery_destinations set version = version + 1, config_version = $4,
		updated_at = $5, is_default = $6, disabled = $7, label = $8, description = $9, icon = $10, instructions = $11,
		disabled_reason = $12,
		tags = $13, config = case when config_version = $4 then config else $14 end,
		sealed = case when config_version = $4 then sealed else $15 end, limits = $16, retry = $17, breaker = $18,
		subscription = $19, default_topics = $20, fallback = $21, disabled_by_service = $22
		where organization_id = $1 and id = $2 and version = $3 and deleted_at is null`,
		d.Organization, d.ID, d.Version, d.ConfigVersion, tx.Time(tx.Now), d.Default, d.Disabled, d.Label,
		d.Description,
		d.Icon, d.Instructions, d.DisabledReason, tx.JSON(Encode(d.Tags)), tx.JSON(d.Config), d.Sealed,
		tx.JSON(Encode(d.Limits)), tx.JSON(Encode(d.Retry)), tx.JSON(Encode(d.Breaker)),
		tx.JSON(Encode(d.Subscription)), tx.JSON(Encode(d.DefaultTopics)), d.Fallback, d.DisabledByService)
	if err != nil || n == 0 {
		return nil, err
	}
	saved := *d
	saved.Version, saved.UpdatedAt = d.NextVersion(), tx.Now
	return &saved, nil
}

// PauseDestination holds a destination's items, or releases them. It changes no version.
func (tx *Tx) PauseDestination(ctx context.Context, organization, id string, paused bool) (found bool, err error) {
	var at time.Time
	if paused {
		at = tx.Now
	}
	n, err := tx.Exec(ctx, `update delivery_destinations set paused_at = $3
		where organization_id = $1 and id = $2 and deleted_at is null`, organization, id, tx.Time(at))
	return n > 0, err
}

// DrainDestination has a destination take nothing new.
func (tx *Tx) DrainDestination(ctx context.Context, organization, id string) error {
	_, err := tx.Exec(ctx, `update delivery_destinations set draining_at = coalesce(draining_at, $3),
		version = version + 1, updated_at = $3, is_default = $4, subscription = null
		where organization_id = $1 and id = $2 and deleted_at is null`, organization, id, tx.Time(tx.Now), false)
	return err
}

// DeleteDestination takes a destination out of use. Its row stays for the history, without config
// and credentials.
func (tx *Tx) DeleteDestination(ctx context.Context, organization, id string) error {
	_, err := tx.Exec(ctx, `update delivery_destinations set deleted_at = $3, version = version + 1, is_default = $4,
		draining_at = null, subscription = null, config = '{}', sealed = null
		where organization_id = $1 and id = $2`, organization, id, tx.Time(tx.Now), false)
	return err
}

// Destination reads a destination, even a deleted one. It returns nil if the organization has none
// of that id.
func (tx *Tx) Destination(ctx context.Context, organization, id string) (*DestinationRow, error) {
	all, err := tx.SelectDestinations(ctx, `where d.organization_id = $1 and d.id = $2`, organization, id)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[0], nil
}

// DestinationsByID reads destinations, even deleted ones.
func (tx *Tx) DestinationsByID(ctx context.Context, organization string, ids []string) ([]*DestinationRow, error) {
	in, args := Among(organization, ids)
	return tx.SelectDestinations(ctx, `where d.organization_id = $1 and d.id `+in, args...)
}

// DestinationsOf reads the destinations that a delivery's items and history name, even deleted
// ones.
func (tx *Tx) DestinationsOf(ctx context.Context, organization, delivery string) ([]*DestinationRow, error) {
	return tx.SelectDestinations(ctx, `where d.organization_id = $1 and (
		d.id in (select a.destination_id from delivery_attempts a where a.organization_id = $1 and a.delivery_id = $2)
		or d.no in (select q.lane & 4294967295 from delivery_queue q where q.organization_id = $1
			and q.delivery_id = $2))`,
		organization, delivery)
}

// DestinationFilter selects destinations. One has to match all fields that are set.
type DestinationFilter struct {
	Type              string
	Disabled, Default *bool
}

// Destinations lists destinations after the given id, in the order of their creation.
func (tx *Tx) Destinations(
	ctx context.Context, organization, after string, f DestinationFilter, limit int,
) ([]*DestinationRow, error) {
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
	return tx.SelectDestinations(ctx, where+` order by d.id limit $3`, args...)
}

// DestinationsByNo reads destinations by number, even deleted ones: a system statement.
func (tx *Tx) DestinationsByNo(ctx context.Context, nos []int64) ([]*DestinationRow, error) {
	return tx.SelectDestinations(ctx, `where d.no in (`+Numbers(nos)+`)`)
}
