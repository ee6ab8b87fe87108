package delivery

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/events"
)

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	DestinationCreated  EventKind = "destination.created"
	DestinationUpdated  EventKind = "destination.updated"
	DestinationDeleted  EventKind = "destination.deleted"
	DestinationDisabled EventKind = "destination.disabled" // by hand or, with the Reason, by the service
	DestinationEnabled  EventKind = "destination.enabled"  // by hand, or because it was seen to be well again
	DestinationPaused   EventKind = "destination.paused"
	DestinationResumed  EventKind = "destination.resumed"
	SecretRotated       EventKind = "destination.secret_rotated"
	BreakerOpened       EventKind = "breaker.opened"
	BreakerClosed       EventKind = "breaker.closed"
	CheckFailed         EventKind = "check.failed"    // a scheduled connection test fails that did not before
	CheckRecovered      EventKind = "check.recovered" // and no longer does
	DestinationDrift    EventKind = "check.drift"     // a connection test has a warning that it had not before
	ItemProgress        EventKind = "item.progress"   // of attempts that take longer than a second, at most one a second each
	SecurityNoted       EventKind = "security"        // see Org.SecurityEvents
)

// Event is something that happened in this process. It is a hint: what is stored is the truth, and what other processes
// do is not heard.
type Event struct {
	Kind         EventKind
	Organization string
	Destination  string // its id, where the event is about one
	Item         string // its id, of ItemProgress
	Progress     int64  // bytes that the other side has, of ItemProgress
	Version      int64  // that the destination then had, where it was changed by hand; 0 where that is not known
	Reason       string // in plain words, for people
	At           time.Time
	Missed       int // events dropped before this one, because nobody took them
}

// EventFilter selects events: those that fit all fields that are set.
type EventFilter struct {
	Kinds       []EventKind
	Destination string // by id
}

// eventBuffer is how many events a subscriber may be behind.
const eventBuffer = 256

// Subscribe returns the events of all organizations from now on, until ctx ends or the service is closed; then the channel
// is closed. A subscriber that is 256 events behind misses some, and is told how many: the service never waits for it.
func (s *DeliveryService) Subscribe(ctx context.Context, f EventFilter) <-chan Event {
	return s.subscribe(ctx, f, "", nil)
}

// Subscribe returns the organization's events, as DeliveryService.Subscribe does. For an actor who may not read the
// organization's destinations the channel is closed at once; one who may not read security events gets none of SecurityNoted,
// and one who may not read deliveries none of ItemProgress. What an actor may do is asked once, at the beginning.
func (o *Org) Subscribe(ctx context.Context, f EventFilter) <-chan Event {
	if err := o.authorize(ctx, access.ReadDestinations); err != nil {
		ch := make(chan Event)
		close(ch)
		return ch
	}
	actor, person := access.ActorFrom(ctx)
	var denied []EventKind
	for kind, right := range map[EventKind]access.Action{SecurityNoted: access.ReadSecurity, ItemProgress: access.ReadDeliveries} {
		if person && o.s.settings.Authorizer.Authorize(ctx, actor, o.name, right) != nil {
			denied = append(denied, kind)
		}
	}
	return o.s.subscribe(ctx, f, o.name, denied)
}

func (s *DeliveryService) subscribe(ctx context.Context, f EventFilter, organization string, denied []EventKind) <-chan Event {
	ch := make(chan Event, eventBuffer)
	wanted := f.Destination
	if id, ok := canonicalID(wanted); ok {
		wanted = id
	}
	var mu sync.Mutex
	missed := 0
	stop := s.engine.Events.Listen(func(e events.Event) {
		if organization != "" && e.Organization != organization || wanted != "" && e.Destination != wanted ||
			len(f.Kinds) > 0 && !slices.Contains(f.Kinds, EventKind(e.Kind)) || slices.Contains(denied, EventKind(e.Kind)) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		select {
		case ch <- Event{Kind: EventKind(e.Kind), Organization: e.Organization, Destination: e.Destination, Item: e.Item,
			Progress: e.Progress, Version: e.Version, Reason: e.Reason, At: e.At, Missed: missed}:
			missed = 0
		default:
			missed++
		}
	})
	end := sync.OnceFunc(func() {
		stop()
		close(ch)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		end()
		return ch
	}
	s.next++
	id := s.next
	s.subscribers[id] = end
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		delete(s.subscribers, id)
		s.mu.Unlock()
		end()
	})
	return ch
}

func (s *DeliveryService) publish(e Event) {
	if e.At.IsZero() {
		e.At = s.settings.Now().UTC()
	}
	s.engine.Events.Publish(events.Event{Kind: string(e.Kind), Organization: e.Organization, Destination: e.Destination,
		Version: e.Version, Reason: e.Reason, At: e.At})
}
