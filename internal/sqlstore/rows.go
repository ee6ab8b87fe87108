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

// Lowest is the rank of the lowest priority. A rank is the high half of a lane, 0 for the highest priority.
const Lowest = 10

// LongAgo is before any time that is stored.
var LongAgo = time.Unix(0, 0).UTC() //nolint:gochecknoglobals // a constant, had times any

// Lane composes a lane of its rank and its destination's number.
func Lane(rank, no int64) int64 { return rank<<32 | no }

// DestinationOf and RankOf take a lane apart.
func DestinationOf(lane int64) int64 { return lane & (1<<32 - 1) }

// RankOf is the high half of a lane.
func RankOf(lane int64) int64 { return lane >> 32 }

// Key names an item and the fence that was seen on it.
type Key struct {
	Organization string
	Delivery     string
	N            int
	Fence        int
}

// Delivery is a stored delivery.
type Delivery struct {
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
	ReplayOf         string // of Tx.Delivery only: the delivery that it repeats
	Fallback         bool   // of Tx.Delivery and Resolve only: its items stand in for the primary defaults
	Faulty           error  // what could not be decoded of it
}

// Options are the seldom used parts of a request. Items are keyed by their number.
type Options struct {
	Retry retry.Policy   `json:"retry,omitzero"`
	Items map[int]Option `json:"items,omitempty"`
	Test  bool           `json:"test,omitempty"` // a sample
}

// Option is a request's override for one item.
type Option struct {
	Retry  retry.Policy    `json:"retry,omitzero"`
	Params json.RawMessage `json:"params,omitempty"`
}

// Payload is stored in the delivery's row (Inline), in rows of its own (ID), or stays with a source.
type Payload struct {
	payload.Info
	Inline      []byte
	ID          string
	Source, Ref string
}

// NewDelivery is a delivery to insert: for its Items, for what is subscribed and for what has one of the tags. Without any
// of them it goes to the organization's defaults. Options can name Items alone.
type NewDelivery struct {
	Delivery
	Subscribers bool
	Tagged      []string
	NotBefore   time.Time
	Fingerprint []byte
	KeyExpires  time.Duration
	Items       []NewItem
	Most        int // destinations
}

// Defaults reports whether it goes to the organization's defaults.
func (d *NewDelivery) Defaults() bool { return len(d.Items) == 0 && !d.selects() }

func (d *NewDelivery) selects() bool { return d.Subscribers || len(d.Tagged) > 0 }

// NewItem is one of a NewDelivery's items; its number is its place from 1.
type NewItem struct {
	Destination string
	Priority    int
	NotBefore   time.Time
}

// Enqueued is what became of a NewDelivery.
type Enqueued struct {
	Items   []EnqueuedItem
	Missing []string // destinations that are not there; then nothing was inserted
	Taken   bool     // its idempotency key is; it was not inserted
}

// EnqueuedItem is an inserted item.
type EnqueuedItem struct {
	N           int
	Destination string
	Fallback    bool // it stands in for the primary defaults
}

// Share is what one lane gets of a claim.
type Share struct {
	Lane  int64
	N     int
	Gate  Gate
	Floor int64 // what is below was claimed already
}

// Gate is how items of a lane are claimed. The numbers are stored.
type Gate int

// The gates: Ordered also keeps an item's place through its retries.
const (
	Open    Gate = 0
	Limited Gate = 1
	Ordered Gate = 2
)

// Claimed is a row of the queue. A claim fills in what an attempt needs: not State, Cancel and RunAt.
type Claimed struct {
	Key
	Lane, Seq int64
	Content   *Delivery // of a claim: what is delivered, nil if it is gone
	State     queue.State
	Attempt   int // attempts charged so far
	Lost      int
	Cancel    queue.Reason // why it is to be cancelled, if it is
	Gate      Gate
	RunAt     time.Time
	Deadline  time.Time
	Place     string // of a claim: where its row is, as long as nobody changes it; "" where the database has no such thing
}

// Change puts an item back into the queue.
type Change struct {
	Key
	State  queue.State // Ready or Scheduled
	RunAt  time.Time
	Charge bool // the attempt counts
	Lost   bool // the lease was lost
}

// Changed is a row that a Change reached, or one that is flagged.
type Changed struct {
	Key
	Cancel queue.Reason // why it is to be cancelled, if it is
}

// Encode returns v as JSON, nil where it would say nothing. A NUL, which jsonb cannot hold, becomes U+FFFD.
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

// Rank is the rank of a priority from 5, the highest, to -5.
func Rank(priority int) int64 { return int64(5 - priority) }

// NoteMissing lists in each result the wanted destinations that were not found. A delivery that has none although it names
// none, or has more than it may, misses "".
func NoteMissing(batch []NewDelivery, results []Enqueued, found []map[string]bool) {
	for i, d := range batch {
		r := &results[i]
		for _, item := range d.Items {
			if !found[i][item.Destination] {
				r.Missing = append(r.Missing, item.Destination)
			}
		}
		if len(r.Items) == 0 && len(d.Items) == 0 || len(r.Items) > d.Most {
			r.Missing = append(r.Missing, "")
		}
	}
}
