// Package event has the words for what happens to destinations and items: what
// DeliveryService.Subscribe reports. It knows no sibling.
package event

import (
	"slices"
	"time"
)

// Kind says what happened.
type Kind string

// The kinds of events.
const (
	DestinationCreated  Kind = "destination.created"
	DestinationUpdated  Kind = "destination.updated"
	DestinationDeleted  Kind = "destination.deleted"
	DestinationDisabled Kind = "destination.disabled" // by hand or, with the Reason, by the service
	DestinationEnabled  Kind = "destination.enabled"  // by hand, or because the destination recovered
	DestinationPaused   Kind = "destination.paused"
	DestinationResumed  Kind = "destination.resumed"
	SecretRotated       Kind = "destination.secret_rotated"
	BreakerOpened       Kind = "breaker.opened"
	BreakerClosed       Kind = "breaker.closed"
	CheckFailed         Kind = "check.failed"    // a scheduled connection test fails for the first time
	CheckRecovered      Kind = "check.recovered" // it passes again
	DestinationDrift    Kind = "check.drift"     // a connection test has a new warning
	ItemProgress        Kind = "item.progress"   // of long attempts, at most one a second each
	SecurityNoted       Kind = "security"        // see Org.SecurityEvents
)

// Event is something that happened in this process. It is a hint: the database holds the truth, and
// events of other processes are not heard.
type Event struct {
	Kind         Kind
	Organization string
	Destination  string // its id, where the event is about one
	Item         string // its id, for ItemProgress
	Progress     int64  // bytes that the other side has, for ItemProgress
	Version      int64  // of the destination after a change by hand; 0 where that is not known
	Reason       string // for people; it holds no secret
	At           time.Time
	Missed       int // events dropped before this one because the subscriber was too slow
}

// Filter selects events: those that match every field that is set.
type Filter struct {
	Kinds       []Kind
	Destination string // by id
}

// Match reports whether f selects e.
func (f Filter) Match(e Event) bool {
	return (len(f.Kinds) == 0 || slices.Contains(f.Kinds, e.Kind)) &&
		(f.Destination == "" || e.Destination == f.Destination)
}
