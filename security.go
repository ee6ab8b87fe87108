package delivery

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/audit"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// SecurityKind says what a security event is about. The values are stored and never change.
type SecurityKind string

// The kinds of security events.
const (
	ForeignActor SecurityKind = "foreign_actor" // an actor of other organizations called for this one
	DeniedActor  SecurityKind = "denied_actor"  // an actor of the organization tried something without the right to it
	ForeignID    SecurityKind = "foreign_id"    // a call for another organization named an id of this one
)

// SecurityEvent is a refused attempt to reach across organizations or beyond an actor's rights.
// Equal attempts within a minute, in one process, are one event.
type SecurityEvent struct {
	ID     string
	Kind   SecurityKind
	Actor  string // Actor.ID; "" where the context had none
	Action access.Action
	// Subject and SubjectID are what a ForeignID named: "destination" or "delivery".
	Subject, SubjectID string
	// From is the organization for which the call with a ForeignID was made. Calls with an Actor do
	// not show it: one tenant should not learn of another.
	From string
	At   time.Time
}

// SecurityEvents returns the attempts to reach into the organization, newest first, 100 a page,
// beginning after the cursor; "" is the start. They are kept for 180 days.
func (o *Org) SecurityEvents(ctx context.Context, after string) (Page[SecurityEvent], error) {
	var page Page[SecurityEvent]
	if err := o.authorize(ctx, access.ReadSecurity); err != nil {
		return page, err
	}
	if after != "" {
		canonical, ok := sqlstore.CanonicalID(after)
		if !ok {
			return page, badCursor("SecurityEvents")
		}
		after = canonical
	}
	if err := o.s.audit.Flush(ctx); err != nil {
		return page, err
	}
	var rows []audit.Event
	err := o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		rows, err = audit.List(ctx, tx, o.name, after, pageSize+1)
		return err
	})
	if err != nil {
		return page, err
	}
	if len(rows) > pageSize {
		rows = rows[:pageSize]
		page.Next = rows[pageSize-1].ID
	}
	_, person := access.ActorFrom(ctx)
	for _, r := range rows {
		e := SecurityEvent{
			ID:        r.ID,
			Kind:      SecurityKind(r.Kind),
			Actor:     r.Actor,
			Action:    access.Action(r.Action),
			Subject:   r.Subject,
			SubjectID: r.SubjectID,
			From:      r.From,
			At:        r.At,
		}
		if person {
			e.From = ""
		}
		page.Items = append(page.Items, e)
	}
	return page, nil
}
