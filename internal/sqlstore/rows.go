package sqlstore

import (
	"bytes"
	"encoding/json"
	"reflect"
	"time"

	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

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
	Fallback         bool   // stands in for the primary defaults; only Tx.Delivery and queuestore.Resolve set it
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
