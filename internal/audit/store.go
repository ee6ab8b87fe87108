package audit

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Event is a row of delivery_security_events. Organization owns the event; From is the
// organization whose call caused it.
type Event struct {
	ID, Organization, Kind, Actor, Action, From, Subject, SubjectID string
	At                                                              time.Time
}

// insert appends an event, unless there is one with its id.
func insert(ctx context.Context, tx *sqlstore.Tx, e Event) error {
	_, err := tx.Exec(ctx, `insert into delivery_security_events
		(organization_id, id, at, kind, actor, action, from_organization, subject, subject_id)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing`,
		e.Organization, e.ID, tx.Time(e.At), e.Kind, sqlstore.Storable(e.Actor), e.Action, e.From, e.Subject,
		sqlstore.Null(e.SubjectID))
	return err
}

// List returns up to limit events of an organization that are older than the one with the id after,
// newest first. With after "" it begins with the newest.
func List(
	ctx context.Context, tx *sqlstore.Tx, organization, after string, limit int,
) (all []Event, err error) {
	if after == "" {
		after = "ffffffff-ffff-ffff-ffff-ffffffffffff"
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		e := Event{Organization: organization}
		err := rows.Scan(&e.ID, sqlstore.Time{T: &e.At}, &e.Kind, &e.Actor, &e.Action, &e.From, &e.Subject,
			sqlstore.Text{S: &e.SubjectID})
		all = append(all, e)
		return err
	}, `select id, at, kind, actor, action, from_organization, subject, subject_id from delivery_security_events
		where organization_id = $1 and id < $2 order by id desc limit $3`, organization, after, limit)
	return all, err
}

// Expire removes up to limit events from before a time, and returns how many: a system statement.
func Expire(ctx context.Context, tx *sqlstore.Tx, before time.Time, limit int) (int64, error) {
	return tx.Exec(ctx, `delete from delivery_security_events where (organization_id, id) in (
		select organization_id, id from delivery_security_events where at < $1 limit $2)`, tx.Time(before), limit)
}

// ownerOfDestination returns the organization that has or had a destination, "" if there is none: a
// system statement.
func ownerOfDestination(ctx context.Context, tx *sqlstore.Tx, id string) (owner string, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&owner) },
		`select organization_id from delivery_destinations where cast(id as text) = $1`, id)
	return owner, err
}

// ownerOfDelivery returns the organization that has a delivery, "" if there is none: a system
// statement. It looks in one organization after another. An index by id alone would cost every
// delivery what is seldom needed, and would tempt the planner.
func ownerOfDelivery(ctx context.Context, tx *sqlstore.Tx, id string) (owner string, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&owner) }, `with recursive organizations(o) as (
			select min(organization_id) from delivery_destinations
			union all
			select (select min(d.organization_id) from delivery_destinations d where d.organization_id > o)
			from organizations where o is not null)
		select o from organizations where o is not null
			and exists (select 1 from delivery_deliveries t where t.organization_id = o and t.id = $1) limit 1`, id)
	return owner, err
}
