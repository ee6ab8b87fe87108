package sqlstore

import (
	"bytes"
	"encoding/json"
	"reflect"
	"time"

	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// Lowest is the rank of the lowest priority. The highest priority has rank 0.
const Lowest = 10

// LongAgo is earlier than any time that is stored. Nothing changes it.
var LongAgo = time.Unix(0, 0).UTC()

// Lane returns the lane of a rank and a destination's number. Items are claimed by lane: it holds
// those of one destination that have one priority.
func Lane(rank, no int64) int64 { return rank<<32 | no }

// DestinationOf returns the number of a lane's destination.
func DestinationOf(lane int64) int64 { return lane & (1<<32 - 1) }

// RankOf returns the rank of a lane.
func RankOf(lane int64) int64 { return lane >> 32 }

// Key names an item, and the fence that it had when it was read. A change of the item applies only
// while the fence is the same.
type Key struct {
	Organization string
	Delivery     string
	N            int
	Fence        int
}

// DeliveryRow is a stored delivery.
type DeliveryRow struct {
	Organization, ID string
	CreatedAt        time.Time
	Deadline         time.Time
	Topic            string
	Priority         int
	IdempotencyKey   string
	CorrelationID    string
	TraceParent      string
	Tags             []string
	Metadata         map[string]string
	Options          Options
	Payload          Payload
	ReplayOf         string // set by Tx.Delivery alone: the delivery that it repeats
	Fallback         bool   // set by Tx.Delivery and Resolve alone: its items stand in for the primary defaults
	Faulty           error  // why a part of it could not be decoded
}

// Options are the parts of a request that are seldom used. Items are keyed by their number.
type Options struct {
	Retry retry.Policy   `json:"retry,omitzero"`
	Items map[int]Option `json:"items,omitempty"`
	Test  bool           `json:"test,omitempty"` // it is a sample
}

// Option overrides settings for one item of a request.
type Option struct {
	Retry  retry.Policy    `json:"retry,omitzero"`
	Params json.RawMessage `json:"params,omitempty"`
}

// Payload is in the row of its delivery (Inline), is stored by itself (ID), or stays where it is
// (Source, Ref).
type Payload struct {
	payload.Info
	Inline      []byte
	ID          string
	Source, Ref string
}

// NewDelivery is a delivery to insert. It goes to the destinations of Items, to subscribers, and to
// destinations with one of the tags in Tagged. Without any of these it goes to the organization's
// defaults. Options apply to Items alone.
type NewDelivery struct {
	DeliveryRow
	Subscribers     bool
	Tagged          []string
	NotBefore       time.Time
	Fingerprint     []byte
	KeyExpires      time.Duration
	Items           []NewItem
	MaxDestinations int // how many destinations it may have
}

// Defaults reports whether the delivery goes to the organization's defaults.
func (d *NewDelivery) Defaults() bool { return len(d.Items) == 0 && !d.selects() }

func (d *NewDelivery) selects() bool { return d.Subscribers || len(d.Tagged) > 0 }

// NewItem is an item of a NewDelivery. Its number is its place, counted from 1.
type NewItem struct {
	Destination string
	Priority    int
	NotBefore   time.Time
}

// Enqueued is the outcome of a NewDelivery.
type Enqueued struct {
	Items   []EnqueuedItem
	Missing []string // destinations that do not exist, see NoteMissing; if any, nothing was inserted
	Taken   bool     // its idempotency key is taken, so it was not inserted
}

// EnqueuedItem is an inserted item.
type EnqueuedItem struct {
	N           int
	Destination string
	Fallback    bool // it stands in for the primary defaults
}

// Share is the part of a claim that one lane gets.
type Share struct {
	Lane  int64
	N     int // items at most
	Gate  Gate
	Floor int64 // the first seq to look at: items below it are claimed already
}

// Gate says how the items of a lane are claimed. Its values are stored.
type Gate int

// The gates.
const (
	Open    Gate = 0 // without a limit
	Limited Gate = 1 // up to a number in flight or a rate
	Ordered Gate = 2 // in strict order: an item keeps its place through its retries
)

// Claimed is an item of the queue. A claim does not set State, Cancel and RunAt. Only a claim sets
// Content and Place.
type Claimed struct {
	Key
	Lane, Seq int64
	Content   *DeliveryRow // what is delivered; nil: it is gone
	State     queue.State
	Attempt   int          // attempts so far that count
	Lost      int          // leases lost
	Cancel    queue.Reason // why it is to be cancelled; None: it is not
	Gate      Gate
	RunAt     time.Time
	Deadline  time.Time
	Place     string // where its row is as long as it does not change; "" if the database has no such thing
}

// Change returns an item to the queue.
type Change struct {
	Key
	State  queue.State // Ready or Scheduled
	RunAt  time.Time
	Charge bool // the attempt counts
	Lost   bool // the lease was lost
}

// Changed is an item that a Change was applied to, or one that is to be cancelled.
type Changed struct {
	Key
	Cancel queue.Reason // why it is to be cancelled; None: it is not
}

// Encode returns v as JSON, nil if v is empty. A NUL, which jsonb cannot hold, becomes U+FFFD.
func Encode(v any) []byte {
	if reflect.ValueOf(v).IsZero() {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil || string(b) == "{}" || string(b) == "null" || string(b) == "[]" {
		return nil
	}
	if !bytes.Contains(b, []byte(`\u0000`)) {
		return b
	}
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		if i++; b[i] == 'u' && string(b[i+1:i+5]) == "0000" {
			copy(b[i+1:], "fffd")
		}
	}
	return b
}

// Rank returns the rank of a priority. Priorities go from 5, the highest, to -5.
func Rank(priority int) int64 { return int64(5 - priority) }

// NoteMissing lists in each result the destinations of items that were not found. It adds "" to a
// delivery that names no destination and has none, and to one that has more than it may.
func NoteMissing(batch []NewDelivery, results []Enqueued, found []map[string]bool) {
	for i, d := range batch {
		r := &results[i]
		for _, item := range d.Items {
			if !found[i][item.Destination] {
				r.Missing = append(r.Missing, item.Destination)
			}
		}
		if len(r.Items) == 0 && len(d.Items) == 0 || len(r.Items) > d.MaxDestinations {
			r.Missing = append(r.Missing, "")
		}
	}
}
