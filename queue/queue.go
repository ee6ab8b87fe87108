// Package queue has the words for what happens to an item: its state and the reason for it. The
// engine that moves items is internal, and the verbs are methods of the root's DeliveryService and
// Org. The package imports no other of this module.
package queue

import (
	"fmt"
	"time"
)

// State is the state of an item. The numbers are stored and never change.
type State int16

// The states. The first three are of pending items, the others of items that have ended.
const (
	Ready      State = 0 // to be attempted as soon as a worker is free and nothing holds it
	Processing State = 1 // leased: an attempt is under way
	Scheduled  State = 2 // waits for a time: that of the next retry, or NotBefore
	Delivered  State = 3 // ended: the other side has it
	Dead       State = 4 // ended without delivery: a dead letter
	Cancelled  State = 5 // ended on request
)

// Ended reports whether the state is final.
func (s State) Ended() bool { return s >= Delivered }

func (s State) String() string {
	return name(s, "ready", "processing", "scheduled", "delivered", "dead", "cancelled")
}

// MarshalText writes what String returns.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reason says why an item waits or ended. The numbers are stored and never change.
type Reason int16

// The reasons.
const (
	None            Reason = 0
	Backoff         Reason = 1  // waits for its next retry
	NotBefore       Reason = 2  // waits for the time that the request set
	Disabled        Reason = 3  // waits: its destination is disabled
	Exhausted       Reason = 4  // dead: the last retry failed
	Permanent       Reason = 5  // dead: no retry can cure the failure
	DeadlinePassed  Reason = 6  // dead: its deadline passed
	Poison          Reason = 7  // dead: three processes died while they attempted it
	Undecodable     Reason = 8  // dead: its stored form cannot be read
	Requested       Reason = 9  // a call cancelled it or, for an event, made it ready again
	DestinationGone Reason = 10 // cancelled: its destination was deleted
	LeaseLost       Reason = 11 // its worker died or stalled during the attempt, which is not charged
	Released        Reason = 12 // our own shutdown or fault ended the attempt, which is not charged

	// Reasons of items that wait. They are never stored.
	Paused           Reason = 13 // its destination, its organization or everything is paused by hand
	BreakerOpen      Reason = 14 // the breaker of its destination is open
	Probing          Reason = 15 // the breaker is half-open, and probes are under way
	ConcurrencyLimit Reason = 16 // its destination has as many attempts under way as its limit allows
	RateLimit        Reason = 17 // its destination has had as many attempts as its rate allows
	InOrder          Reason = 18 // in strict order, an earlier item has not ended
	OrganizationBusy Reason = 19 // its organization has as many attempts under way as its limit allows
	CatchingUp       Reason = 20 // its destination catches up: held items go out at a bounded rate
	NoHandler        Reason = 21 // no running process has a handler for the type
	Turn             Reason = 22 // other items are before it, or no worker is free
)

func (r Reason) String() string {
	return name(
		r, "none", "backoff", "not before", "destination disabled", "retries exhausted", "permanent failure",
		"deadline passed", "poison", "undecodable", "requested", "destination deleted", "lease lost",
		"released", "paused", "breaker open", "breaker half-open", "concurrency limit", "rate limit",
		"strict order", "organization limit", "catching up", "no handler", "in turn",
	)
}

// MarshalText writes what String returns.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func name[T ~int16](v T, names ...string) string {
	if int(v) >= 0 && int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("unknown(%d)", int16(v))
}

// Stats counts the items that wait and says how fast they go. An item is held if its destination is
// disabled or paused or has an open breaker. Held items are counted in Held alone.
type Stats struct {
	Ready, Processing, Scheduled, Held int64

	Oldest    time.Time // when the oldest ready item became ready; zero if none is ready
	PerSecond float64   // items that ended, over the last five minutes
	// TimeToEmpty is how long the ready items take at that rate: zero if there are none, negative
	// if no item ended.
	TimeToEmpty time.Duration
	// Snapshot is the age of the oldest transaction that keeps PostgreSQL from removing dead rows,
	// as far as the role may see it. It is zero on SQLite.
	Snapshot time.Duration
	At       time.Time // when the figures were taken
}

// Explanation says why an item has not been delivered, and when it is attempted next.
type Explanation struct {
	Item, Destination string
	State             State
	Reason            Reason
	Text              string    // for people
	Next              time.Time // the earliest time of the next attempt; zero if none is set
}

// Summary is the state of a delivery as a whole, derived from its items.
type Summary string

// The summaries.
const (
	Queued          Summary = "queued"           // no item has been attempted or ended
	InProgress      Summary = "processing"       // some item was attempted or has ended, and others are pending
	Completed       Summary = "completed"        // all items delivered
	PartiallyFailed Summary = "partially failed" // all ended, some delivered, some dead or cancelled
	Failed          Summary = "failed"           // all ended, none delivered, some dead
	AllCancelled    Summary = "cancelled"        // all items cancelled
)

// Ended reports whether every item has ended.
func (s Summary) Ended() bool { return s != Queued && s != InProgress }

// Summarize derives the summary of a delivery from the states of its items. attempted says whether
// any of them was attempted.
func Summarize(states []State, attempted bool) Summary {
	var pending, delivered, dead int
	for _, s := range states {
		switch s {
		case Delivered:
			delivered++
		case Dead:
			dead++
		case Cancelled:
		default:
			pending++
			attempted = attempted || s == Processing
		}
	}
	switch {
	case pending == len(states) && !attempted:
		return Queued
	case pending > 0:
		return InProgress
	case delivered == len(states):
		return Completed
	case delivered > 0:
		return PartiallyFailed
	case dead > 0:
		return Failed
	}
	return AllCancelled
}
