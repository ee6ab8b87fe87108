// Package audit records attempts to reach across organizations, or beyond an actor's rights.
package audit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

const (
	repeated      = time.Minute // the same event within it is recorded once
	maxRemembered = 10_000
	maxPending    = 1000
	flushTimeout  = 5 * time.Second
)

// Recorder records security events. Those of calls in a host's transaction wait for the next flush,
// because another connection may not be had and the transaction may be rolled back. A Recorder may
// be used by many goroutines at once.
type Recorder struct {
	store  *sqlstore.Store
	bus    *events.Bus
	logger *slog.Logger
	now    func() time.Time

	looking chan struct{} // a place for one look for the owner of a delivery, which can take long

	mu      sync.Mutex
	recent  map[Event]time.Time
	pending []Event
}

// NewRecorder returns a Recorder that also publishes what it records on bus, and logs it.
func NewRecorder(store *sqlstore.Store, bus *events.Bus, logger *slog.Logger, now func() time.Time) *Recorder {
	return &Recorder{store: store, bus: bus, logger: logger, now: now, looking: make(chan struct{}, 1)}
}

// Owner returns the organization that has a "destination" or a "delivery" of an id, "" if none
// does. host is the caller's own transaction, nil for none.
func (r *Recorder) Owner(ctx context.Context, host *sqlstore.Tx, subject, id string) (owner string, err error) {
	look := func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		owner, err = ownerOfDestination(ctx, tx, id)
		return err
	}
	if subject == "delivery" {
		select {
		case r.looking <- struct{}{}:
			defer func() { <-r.looking }()
		case <-ctx.Done():
			return "", ctx.Err()
		}
		look = func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			owner, err = ownerOfDelivery(ctx, tx, id)
			return err
		}
	} else if subject != "destination" {
		return "", nil
	}
	if host != nil {
		err = look(ctx, host)
	} else {
		err = r.store.Read(ctx, look)
	}
	return owner, err
}

// Note records an event. With later it is stored by the next Flush instead of now. The call that
// caused it is refused either way, so an error is only logged.
func (r *Recorder) Note(ctx context.Context, e Event, later bool) {
	now := r.now().UTC()
	if !r.fresh(e, now) {
		return
	}
	r.logger.WarnContext(
		ctx, "delivery: security event", "kind", e.Kind, "organization", e.Organization, "actor", e.Actor,
		"action", e.Action, "from", e.From, "subject", e.Subject, "id", e.SubjectID,
	)
	r.bus.Publish(event.Event{Kind: event.SecurityNoted, Organization: e.Organization, Reason: e.Kind})
	id, err := uuid.NewV7()
	if err != nil {
		return
	}
	e.ID, e.At = id.String(), now
	r.mu.Lock()
	if len(r.pending) < maxPending {
		r.pending = append(r.pending, e)
	}
	r.mu.Unlock()
	if later {
		return
	}
	if err := r.Flush(context.WithoutCancel(ctx)); err != nil {
		r.logger.ErrorContext(ctx, "delivery: a security event could not be stored; it is tried again", "error", err)
	}
}

// fresh reports whether e was not recorded of late, and remembers it.
func (r *Recorder) fresh(e Event, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, ok := r.recent[e]; ok && now.Sub(last) < repeated {
		return false
	}
	if r.recent == nil || len(r.recent) >= maxRemembered {
		r.recent = map[Event]time.Time{}
	}
	r.recent[e] = now
	return true
}

// Flush stores the events that wait.
func (r *Recorder) Flush(ctx context.Context) error {
	r.mu.Lock()
	pending := r.pending
	r.pending = nil
	r.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	err := r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		for _, e := range pending {
			if err := insert(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	}, Committed: sqlstore.Again})
	if err != nil {
		r.mu.Lock()
		r.pending = append(pending, r.pending...)
		r.mu.Unlock()
	}
	return err
}
