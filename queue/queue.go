// Package queue holds the words of what becomes of an item: its state and the reason for it. The engine that moves items
// is internal; the verbs hang on the root's DeliveryService and Org. It knows no sibling.
package queue

import (
	"fmt"
	"time"
)

// State is where an item stands. The numbers are stored: they never change.
type State int16

// The states: the first three are of pending items, the others of ended ones.
const (
	Ready      State = 0 // to be attempted as soon as a worker is free and nothing holds it
	Processing State = 1 // leased: an attempt is under way
	Scheduled  State = 2 // waits for its time: the next retry, or NotBefore
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

// Reason says why an item waits or ended. The numbers are stored: they never change.
type Reason int16

// The reasons.
const (
	None            Reason = 0
	Backoff         Reason = 1  // waits for its next retry
	NotBefore       Reason = 2  // waits for the time the request named
	Disabled        Reason = 3  // waits: its destination is disabled
	Exhausted       Reason = 4  // dead: the last retry failed
	Permanent       Reason = 5  // dead: a failure that no retry can mend
	DeadlinePassed  Reason = 6  // dead: rather than late
	Poison          Reason = 7  // dead: its process died at it three times
	Undecodable     Reason = 8  // dead: its stored form cannot be read
	Requested       Reason = 9  // by a call: cancelled or, of an event, ready again
	DestinationGone Reason = 10 // cancelled: its destination was deleted
	LeaseLost       Reason = 11 // an attempt whose worker died or stalled: not charged
	Released        Reason = 12 // an attempt that our own shutdown or fault ended: not charged

	// Of items that wait; never stored.
	Paused           Reason = 13 // by hand: its destination, its organization, or all
	BreakerOpen      Reason = 14 // the breaker of its destination is open
	Probing          Reason = 15 // it is half-open, and probes are under way
	ConcurrencyLimit Reason = 16 // its destination has as many attempts under way as it may
	RateLimit        Reason = 17 // its destination has had as many as its rate allows
	InOrder          Reason = 18 // one before it, in strict order, has not ended
	OrganizationBusy Reason = 19 // its organization has as many attempts under way as it may
	Draining         Reason = 20 // what was held goes out at a bounded rate
	NoHandler        Reason = 21 // no process that runs has a handler for the type
	Turn             Reason = 22 // others are before it, or no worker is free
)

func (r Reason) String() string {
	return name(r, "none", "backoff", "not before", "destination disabled", "retries exhausted", "permanent failure",
		"deadline passed", "poison", "undecodable", "requested", "destination deleted", "lease lost", "released", "paused",
		"breaker open", "breaker half-open", "concurrency limit", "rate limit", "strict order", "organization limit", "draining",
		"no handler", "in turn")
}

// MarshalText writes what String returns.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func name[T ~int16](v T, names ...string) string {
	if int(v) >= 0 && int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("unknown(%d)", int16(v))
}

// Stats says what waits, and how fast it goes. Items that are held are counted in Held alone: those of destinations that are
// disabled, paused or whose breaker is open.
type Stats struct {
	Ready, Processing, Scheduled, Held int64

	Oldest    time.Time     // since when the oldest item that is ready, and not held, is; zero if there is none
	PerSecond float64       // items that ended, over the last five minutes
	Drain     time.Duration // how long it takes at that rate until nothing is ready; zero if nothing is, negative if none ended
	Snapshot  time.Duration // age of the oldest transaction on PostgreSQL that slows its cleaning up, as far as it can be seen
	At        time.Time     // of these figures
}

// Explanation says why an item has not been delivered, and when it is attempted next.
type Explanation struct {
	Item, Destination string
	State             State
	Reason            Reason
	Text              string    // in plain words
	Next              time.Time // of the next attempt, not before; zero where no time is set
}

// Summary is the state of a delivery as a whole, derived from its items.
type Summary string

// The summaries.
const (
	Queued          Summary = "queued"           // no item has been attempted or ended
	InProgress      Summary = "processing"       // some item is under way, waits for a retry, or has ended before others
	Completed       Summary = "completed"        // all items delivered
	PartiallyFailed Summary = "partially failed" // all ended, some delivered, some dead or cancelled
	Failed          Summary = "failed"           // all ended, none delivered, some dead
	AllCancelled    Summary = "cancelled"        // all items cancelled
)

// Ended reports whether every item has ended.
func (s Summary) Ended() bool { return s != Queued && s != InProgress }

// Summarize derives the state of a delivery from its items' states, and whether any was attempted.
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
