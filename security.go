package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// SecurityKind says what a security event is about. The values are stored: they never change.
type SecurityKind string

// The kinds of security events.
const (
	ForeignActor SecurityKind = "foreign_actor" // an actor of other organizations called for this one
	DeniedActor  SecurityKind = "denied_actor"  // an actor of the organization may not do what they tried
	ForeignID    SecurityKind = "foreign_id"    // a call for another organization named what belongs to this one
)

// SecurityEvent is an attempt across organizations, or beyond an actor's rights. It was refused. The same within a minute
// and a process is one event.
type SecurityEvent struct {
	ID     string
	Kind   SecurityKind
	Actor  string // Actor.ID; "" where the context had none
	Action access.Action
	// Subject and SubjectID are what a ForeignID named: "destination" or "delivery".
	Subject, SubjectID string
	// From is the organization that a ForeignID was named for. It is shown to the host alone, not in calls with an Actor:
	// one tenant should not learn of another.
	From string
	At   time.Time
}

// SecurityEvents returns the attempts to reach into the organization, the newest first, 100 a page, from after the cursor;
// "" is the start. They are kept for 180 days.
func (o *Org) SecurityEvents(ctx context.Context, after string) (Page[SecurityEvent], error) {
	var page Page[SecurityEvent]
	if err := o.authorize(ctx, access.ReadSecurity); err != nil {
		return page, err
	}
	if after != "" {
		canonical, ok := canonicalID(after)
		if !ok {
			return page, badCursor("SecurityEvents")
		}
		after = canonical
	}
	if err := o.s.flushSecurity(ctx); err != nil {
		return page, err
	}
	var rows []sqlstore.SecurityEvent
	err := o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		rows, err = tx.SecurityEvents(ctx, o.name, after, pageSize+1)
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
		e := SecurityEvent{ID: r.ID, Kind: SecurityKind(r.Kind), Actor: r.Actor, Action: access.Action(r.Action), Subject: r.Subject,
			SubjectID: r.SubjectID, From: r.From, At: r.At}
		if person {
			e.From = ""
		}
		page.Items = append(page.Items, e)
	}
	return page, nil
}

func badCursor(from string) error {
	return destination.NewValidationError("list", destination.Invalid("cursor", "is not one that %s returned", from))
}

// authorize is the first thing that every method of Org and below does: it checks the organization's name, and that who
// calls may do that. In a transaction of the host's it asks for no other connection.
func (o *Org) authorize(ctx context.Context, action access.Action) error {
	return o.permit(ctx, action, false)
}

func (o *Org) permit(ctx context.Context, action access.Action, inTx bool) error {
	if err := o.check(); err != nil {
		return err
	}
	actor, ok := access.ActorFrom(ctx)
	if !ok {
		if o.s.settings.ActorRequired {
			return fmt.Errorf("%w: the context has no actor; see access.WithActor", access.ErrDenied)
		}
		return nil
	}
	err := o.s.settings.Authorizer.Authorize(ctx, actor, o.name, action)
	event := sqlstore.SecurityEvent{Organization: o.name, Actor: actor.ID, Action: string(action)}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, access.ErrForeign):
		event.Kind = string(ForeignActor)
		err = fmt.Errorf("%w: organization %q", ErrNotFound, o.name)
	case errors.Is(err, access.ErrDenied):
		event.Kind = string(DeniedActor)
	default:
		return fmt.Errorf("delivery: the authorizer could not decide: %w", err)
	}
	o.s.security.note(ctx, o.s, event, inTx)
	return err
}

// notFoundError says that an organization has nothing of an id. It is ErrNotFound.
type notFoundError struct{ path, kind, id string }

func (e *notFoundError) Error() string {
	return fmt.Sprintf("%v: %s%s %.100q", ErrNotFound, e.path, e.kind, e.id)
}

func (e *notFoundError) Is(target error) bool { return target == ErrNotFound }

func notFound(kind, id string) error { return &notFoundError{kind: kind, id: id} }

// watch notes a security event for each id of another organization's that err says was not found.
func (o *Org) watch(ctx context.Context, action access.Action, err *error) {
	o.watchIn(ctx, nil, action, *err)
}

// watchIn is watch in a host's transaction, if there is one.
func (o *Org) watchIn(ctx context.Context, host *sqlstore.Tx, action access.Action, err error) {
	for _, missing := range missingIn(err, nil) {
		canonical, ok := canonicalID(missing.id)
		if !ok {
			continue
		}
		owner, err := o.s.security.owner(ctx, o.s, host, missing.kind, canonical)
		if err != nil {
			o.s.settings.Logger.WarnContext(ctx, "delivery: it could not be told whether an id is another organization's", "error", err)
			continue
		}
		if owner == "" || owner == o.name {
			continue
		}
		actor, _ := access.ActorFrom(ctx)
		o.s.security.note(ctx, o.s, sqlstore.SecurityEvent{
			Kind: string(ForeignID), Organization: owner, From: o.name, Actor: actor.ID, Action: string(action),
			Subject: missing.kind, SubjectID: canonical,
		}, host != nil)
	}
}

func missingIn(err error, all []*notFoundError) []*notFoundError {
	switch e := err.(type) { //nolint:errorlint // this walks the tree itself, one node at a time
	case nil:
	case *notFoundError:
		all = append(all, e)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			all = missingIn(inner, all)
		}
	case interface{ Unwrap() error }:
		all = missingIn(e.Unwrap(), all)
	}
	return all
}

const (
	repeated       = time.Minute // the same event within it is not noted again
	mostRemembered = 10_000
	mostPending    = 1000
)

// security notes events. Those of calls in a host's transaction wait for the next call that is not, because another
// connection may not be had, and the transaction may be rolled back.
type security struct {
	looking chan struct{} // holds what looks for the organization of a delivery, one at a time: it can take long where there are many

	mu      sync.Mutex
	recent  map[sqlstore.SecurityEvent]time.Time
	pending []sqlstore.SecurityEvent
}

// owner returns the organization that has a destination or a delivery of an id, "" if none does.
func (c *security) owner(ctx context.Context, s *DeliveryService, host *sqlstore.Tx, kind, id string) (owner string, err error) {
	if kind == "delivery" {
		select {
		case c.looking <- struct{}{}:
			defer func() { <-c.looking }()
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	look := func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		switch kind {
		case "destination":
			owner, err = tx.OwnerOfDestination(ctx, id)
		case "delivery":
			owner, err = tx.OwnerOfDelivery(ctx, id)
		}
		return err
	}
	if host != nil {
		return owner, look(ctx, host)
	}
	err = s.store.Read(ctx, look)
	return owner, err
}

// note keeps an event. The call is refused whether that works or not, so an error is only logged.
func (c *security) note(ctx context.Context, s *DeliveryService, e sqlstore.SecurityEvent, later bool) {
	now := s.settings.Now().UTC()
	c.mu.Lock()
	if last, ok := c.recent[e]; ok && now.Sub(last) < repeated {
		c.mu.Unlock()
		return
	}
	if c.recent == nil || len(c.recent) >= mostRemembered {
		c.recent = map[sqlstore.SecurityEvent]time.Time{}
	}
	c.recent[e] = now
	c.mu.Unlock()

	s.settings.Logger.WarnContext(ctx, "delivery: security event", "kind", e.Kind, "organization", e.Organization, "actor", e.Actor,
		"action", e.Action, "from", e.From, "subject", e.Subject, "id", e.SubjectID)
	s.publish(Event{Kind: SecurityNoted, Organization: e.Organization, Reason: e.Kind, At: now})
	id, err := uuid.NewV7()
	if err != nil {
		return
	}
	e.ID, e.At = id.String(), now
	c.mu.Lock()
	if len(c.pending) < mostPending {
		c.pending = append(c.pending, e)
	}
	c.mu.Unlock()
	if later {
		return
	}
	if err := s.flushSecurity(context.WithoutCancel(ctx)); err != nil {
		s.settings.Logger.ErrorContext(ctx, "delivery: a security event could not be stored; it is tried again", "error", err)
	}
}

const securityTimeout = 5 * time.Second

// flushSecurity stores the events that wait.
func (s *DeliveryService) flushSecurity(ctx context.Context) error {
	c := &s.security
	c.mu.Lock()
	pending := c.pending
	c.pending = nil
	c.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, securityTimeout)
	defer cancel()
	err := s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		for _, e := range pending {
			if err := tx.InsertSecurityEvent(ctx, e); err != nil {
				return err
			}
		}
		return nil
	}, sqlstore.Again)
	if err != nil {
		c.mu.Lock()
		c.pending = append(pending, c.pending...)
		c.mu.Unlock()
	}
	return err
}
