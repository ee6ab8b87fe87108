// Package destination describes where things are delivered to: what a caller specifies, what is
// stored and shown, and how faulty input is reported. The verbs are methods of
// delivery.Destinations, because they need the store, the keys and the handlers. The package
// imports package retry and no other of this module.
package destination

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"time"

	"github.com/deliverykit/delivery/retry"
)

// Config is the typed configuration of a destination: webhook.Config, or a host's own struct. It is
// stored as JSON; fields of type [Secret] are sealed.
type Config interface {
	DestinationType() string // the name its handler is registered under
}

// As returns config as a Config of a type. config is JSON ([]byte, string or json.RawMessage) or
// any value that encodes to JSON. It is for configs from a form or a file, and for handlers that
// are registered under another name.
func As(typ string, config any) Config { return as{typ, config} }

type as struct {
	typ    string
	config any
}

func (a as) DestinationType() string { return a.typ }

// Raw returns the JSON of a config with its secrets in clear and its placeholders.
func Raw(config Config) (json.RawMessage, error) {
	a, ok := config.(as)
	if !ok {
		return RevealPartial(config)
	}
	switch c := a.config.(type) {
	case []byte:
		return validJSON(c)
	case json.RawMessage:
		return validJSON(c)
	case string:
		return validJSON([]byte(c))
	}
	return RevealPartial(a.config)
}

func validJSON(b []byte) (json.RawMessage, error) {
	if !json.Valid(b) {
		return nil, errors.New("is not valid JSON") // without the text: it may hold secrets
	}
	return b, nil
}

// Spec is what a destination is created from. Label and Config are required.
type Spec struct {
	Label        string // for people; need not be unique; up to 200 bytes
	Description  string
	Icon         string // URL of a picture
	Instructions string // set-up instructions, for people
	Config       Config
	Tags         []string
	Subscription Subscription // the requests with Subscribers set that go here
	Default      bool         // requests that name no destination go here
	// DefaultTopics makes it a default for requests whose topic matches one of these patterns, see
	// [MatchTopic]. Such a request does not also go to the catch-all defaults. Without patterns it
	// is a default for all topics.
	DefaultTopics []string
	// Fallback orders the defaults that step in. If all primary defaults (Fallback 0) are disabled
	// or have a breaker that is not closed, the usable default with the lowest number gets their
	// requests.
	Fallback int
	Disabled bool // items are held until it is enabled
	Limits   Limits
	Retry    retry.Policy // over the service's
	Breaker  retry.Breaker
}

type specJSON struct {
	Type         string          `json:"type"`
	Label        string          `json:"label"`
	Description  string          `json:"description,omitempty"`
	Icon         string          `json:"icon,omitempty"`
	Instructions string          `json:"instructions,omitempty"`
	Config       json.RawMessage `json:"config"`
	Tags         []string        `json:"tags,omitempty"`
	Subscription Subscription    `json:"subscription,omitzero"`
	Default      bool            `json:"default,omitempty"`
	Topics       []string        `json:"default_topics,omitempty"`
	Fallback     int             `json:"fallback,omitempty"`
	Disabled     bool            `json:"disabled,omitempty"`
	Limits       Limits          `json:"limits,omitzero"`
	Retry        retry.Policy    `json:"retry,omitzero"`
	Breaker      retry.Breaker   `json:"breaker,omitzero"`
}

// UnmarshalJSON reads {"type": "webhook", "label": "...", "config": {...}, ...}.
func (s *Spec) UnmarshalJSON(b []byte) error {
	var j specJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*s = Spec{
		Label: j.Label, Description: j.Description, Icon: j.Icon, Instructions: j.Instructions,
		Config: As(j.Type, j.Config), Tags: j.Tags, Default: j.Default, Disabled: j.Disabled,
		Limits: j.Limits, Retry: j.Retry,
		Breaker: j.Breaker, Subscription: j.Subscription, DefaultTopics: j.Topics, Fallback: j.Fallback,
	}
	return nil
}

// Patch is a partial update: a nil field is unchanged. Set makes the pointers.
type Patch struct {
	Config        Config         // replaces the config; a secret that is still redacted stays as stored
	Merge         map[string]any // instead: an RFC 7396 merge patch on the stored config; null clears
	Label         *string
	Description   *string
	Icon          *string
	Instructions  *string
	Tags          *[]string
	Subscription  *Subscription
	Default       *bool
	DefaultTopics *[]string
	Fallback      *int
	Disabled      *bool
	Limits        *Limits
	Retry         *retry.Policy
	Breaker       *retry.Breaker
	IfVersion     int64 // if not zero and not the current version, the update is delivery.ErrStale
}

// Set returns a pointer to v, for the fields of Patch.
func Set[T any](v T) *T { return &v }

// Limits bound what one destination gets, over all processes together. A zero field is inherited
// from the service. A negative number means unlimited.
type Limits struct {
	Timeout     Duration `json:"timeout,omitempty"`     // of one attempt. Default: 30 s
	MaxBytes    int64    `json:"max_bytes,omitempty"`   // of a payload; a larger one is dead. Default: unlimited
	Concurrency int      `json:"concurrency,omitempty"` // attempts at once. Default: unlimited
	PerSecond   float64  `json:"per_second,omitempty"`  // attempts begun, by a token bucket. Default: unlimited
	Burst       int      `json:"burst,omitempty"`       // size of that bucket. Default: PerSecond, at least 1
	// Ordered makes attempts one at a time, in the order in which items became ready, higher
	// priorities first. A failed item keeps its place: until it is delivered or dead, all items
	// behind it wait.
	Ordered bool `json:"ordered,omitempty"`
}

// Or returns l with its zero fields taken from base.
func (l Limits) Or(base Limits) Limits {
	if l.Timeout == 0 {
		l.Timeout = base.Timeout
	}
	if l.MaxBytes == 0 {
		l.MaxBytes = base.MaxBytes
	}
	if l.Concurrency == 0 {
		l.Concurrency = base.Concurrency
	}
	if l.PerSecond == 0 {
		l.PerSecond, l.Burst = base.PerSecond, base.Burst
	}
	l.Ordered = l.Ordered || base.Ordered
	return l
}

// Gated reports whether claims for the destination need a look at what all processes have in
// flight.
func (l Limits) Gated() bool { return l.Concurrency > 0 || l.PerSecond > 0 || l.Ordered }

// Validate reports every bad field, joined.
func (l Limits) Validate() error {
	var errs []error
	if l.Timeout < 0 || l.Timeout > Hours(24) {
		errs = append(errs, Invalid("timeout", "%s is not between 0 and 24h", time.Duration(l.Timeout)))
	}
	if l.PerSecond > 1e6 || l.PerSecond > 0 && l.PerSecond < 1e-4 || math.IsNaN(l.PerSecond) {
		errs = append(errs, Invalid("per_second", "%v is not between 0.0001 and 1000000", l.PerSecond))
	}
	if l.Burst < 0 || l.Burst > 1e6 {
		errs = append(errs, Invalid("burst", "%d is not between 0 and 1000000", l.Burst))
	}
	if l.Burst > 0 && l.PerSecond <= 0 {
		errs = append(errs, Invalid("burst", "is set, but per_second is not"))
	}
	return errors.Join(errs...)
}

// Destination is a stored destination as its owner sees it. Config is its JSON with secrets
// redacted.
type Destination struct {
	ID             string          `json:"id"`
	Organization   string          `json:"organization"`
	Type           string          `json:"type"`
	Label          string          `json:"label"`
	Description    string          `json:"description,omitempty"`
	Icon           string          `json:"icon,omitempty"`
	Instructions   string          `json:"instructions,omitempty"`
	Config         json.RawMessage `json:"config"`
	Tags           []string        `json:"tags,omitempty"`
	Subscription   Subscription    `json:"subscription,omitzero"`
	Default        bool            `json:"default"`
	DefaultTopics  []string        `json:"default_topics,omitempty"`
	Fallback       int             `json:"fallback,omitempty"`
	Disabled       bool            `json:"disabled"`
	DisabledReason string          `json:"disabled_reason,omitempty"` // for people; "" if none was given
	// DisabledByService says that failures disabled it, or the other side by saying that it is
	// gone, and no person.
	DisabledByService bool          `json:"disabled_by_service,omitempty"`
	Limits            Limits        `json:"limits,omitzero"`
	Retry             retry.Policy  `json:"retry,omitzero"`
	Breaker           retry.Breaker `json:"breaker,omitzero"`
	PausedAt          time.Time     `json:"paused_at,omitzero"`   // when it was paused by hand; zero if it is not
	DrainingAt        time.Time     `json:"draining_at,omitzero"` // when its deletion began, if it did
	Version           int64         `json:"version"`              // grows with each change by a call
	CreatedAt         time.Time     `json:"created_at"`
	UpdatedAt         time.Time     `json:"updated_at"`
	Health            Health        `json:"health"`
}

// Pending says what happens to the items that wait for a destination when it is deleted.
type Pending int

// The ways to treat pending items.
const (
	RefusePending Pending = iota // the deletion is delivery.ErrInUse if there are any
	CancelPending                // they end cancelled
	DrainPending                 // they are delivered first; until then it is listed and takes no new items
)

// Rotation replaces the signing secret of a destination. The zero Rotation generates one, and uses
// the old and the new one for a day.
type Rotation struct {
	Secret  Secret   // the new secret. Default: a generated one
	Overlap Duration // how long the previous secrets are still used; negative: not at all. Default: 24 h
}

// TypeInfo describes a registered type, for forms and lists.
type TypeInfo struct {
	Type        string          `json:"type"`
	Family      string          `json:"family,omitempty"` // a group of similar types: "storage", "email"
	Title       string          `json:"title,omitempty"`
	Description string          `json:"description,omitempty"`
	Schema      json.RawMessage `json:"schema,omitempty"` // JSON Schema of the config
}

// Duration is a time.Duration that encodes to JSON as text such as "36h".
type Duration time.Duration

// Hours returns n hours.
func Hours(n int) Duration { return Duration(time.Duration(n) * time.Hour) }

// Days returns n times 24 hours.
func Days(n int) Duration { return Hours(24 * n) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the form that time.ParseDuration reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the form that time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		// Like every error of decoding, it does not quote the text.
		return errors.New(`is not a duration; expected for example "36h" or "1m30s"`)
	}
	*d = Duration(v)
	return nil
}

// UnmarshalJSON reads the text form. Its error lets encoding/json name the field.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text *string
	if err := json.Unmarshal(b, &text); err != nil || text != nil && d.UnmarshalText([]byte(*text)) != nil {
		return &json.UnmarshalTypeError{Value: "value", Type: reflect.TypeFor[Duration]()}
	}
	return nil
}
