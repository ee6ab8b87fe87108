package sqlstore

import (
	"context"
	"database/sql"
	"time"
)

// SecurityEvent is a row of delivery_security_events. Organization owns the event; From is the
// organization whose call caused it.
type SecurityEvent struct {
	ID, Organization, Kind, Actor, Action, From, Subject, SubjectID string
	At                                                              time.Time
}

// InsertSecurityEvent appends an event, unless there is one with its id.
func (tx *Tx) InsertSecurityEvent(ctx context.Context, e SecurityEvent) error {
	_, err := tx.Exec(ctx, `insert into delivery_security_events
		(organization_id, id, at, kind, actor, action, from_organization, subject, subject_id)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing`,
		e.Organization, e.ID, tx.Time(e.At), e.Kind, Storable(e.Actor), e.Action, e.From, e.Subject, Null(e.SubjectID))
	return err
}

// SecurityEvents lists an organization's events, newest first, that are older than the one with the
// given id; "" is the start.
func (tx *Tx) SecurityEvents(
	ctx context.Context, organization, after string, limit int,
) (all []SecurityEvent, err error) {
	if after == "" {
		after = "ffffffff-ffff-ffff-ffff-ffffffffffff"
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		e := SecurityEvent{Organization: organization}
		err := rows.Scan(&e.ID, Time{&e.At}, &e.Kind, &e.Actor, &e.Action, &e.From, &e.Subject, Text{&e.SubjectID})
		all = append(all, e)
		return err
	}, `select id, at, kind, actor, action, from_organization, subject, subject_id from delivery_security_events
		where organization_id = $1 and id < $2 order by id desc limit $3`, organization, after, limit)
	return all, err
}

// ExpireSecurityEvents removes events from before a time: a system statement.
func (tx *Tx) ExpireSecurityEvents(ctx context.Context, before time.Time, limit int) (int64, error) {
	return tx.Exec(ctx, `delete from delivery_security_events where (organization_id, id) in (
		select organization_id, id from delivery_security_events where at < $1 limit $2)`, tx.Time(before), limit)
}

// OwnerOfDestination returns the organization that has or had a destination, "" if there is none: a
// system statement.
func (tx *Tx) OwnerOfDestination(ctx context.Context, id string) (owner string, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&owner) },
		`select organization_id from delivery_destinations where cast(id as text) = $1`, id)
	return owner, err
}

// OwnerOfDelivery returns the organization that has a delivery, "" if there is none: a system
// statement. It looks in one organization after another. An index by id alone would cost every
// delivery what is seldom needed, and would tempt the planner.
func (tx *Tx) OwnerOfDelivery(ctx context.Context, id string) (owner string, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&owner) }, `with recursive organizations(o) as (
			select min(organization_id) from delivery_destinations
			union all
			select (select min(d.organization_id) from delivery_destinations d where d.organization_id > o)
			from organizations where o is not null)
		select o from organizations where o is not null
			and exists (select 1 from delivery_deliveries t where t.organization_id = o and t.id = $1) limit 1`, id)
	return owner, err
}
