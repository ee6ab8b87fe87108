// Package handler is the seam between the service and what delivers to one type of destination.
// Whoever writes a handler imports this package and its own SDK; it needs nothing else of the
// module. It imports the standard library, and of its siblings only the words of destination and
// payload.
package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/payload"
)

// Handler delivers to one type of destination. One value serves all destinations of its type, from
// many goroutines at once. Deliver makes one attempt, within ctx, which ends at the attempt's
// timeout, at a shutdown that has run out of patience, or when the item's lease is lost. It returns
// nil when the other side has taken the payload for good; see Error for the rest. A Result beside
// an error is recorded too. A panic is a failed attempt.
//
// Delivery is at least once: after a crash the same item comes again with the same MessageID, so an
// attempt should have no effect the second time wherever the other side allows that.
//
// A host may wrap a Handler, for example to log or to measure. Such a wrapper is a Handler with a
// method Unwrap() Handler, which returns the inner one: the service then finds the optional
// interfaces of the inner Handler, and its io.Closer, through As. An interface that the wrapper
// implements itself replaces the inner one's, so the wrapper has to pass the call on:
//
//	type logged struct {
//		handler.Handler
//		log *slog.Logger
//	}
//
//	func (l logged) Unwrap() handler.Handler { return l.Handler }
//
//	func (l logged) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
//		result, err := l.Handler.Deliver(ctx, req)
//		l.log.InfoContext(ctx, "attempt", "item", req.ItemID, "error", err)
//		return result, err
//	}
type Handler interface {
	Deliver(ctx context.Context, req *Request) (*Result, error)
}

// The optional interfaces of a Handler. delivery.New looks for each of them once, with As.
type (
	// ConfigParser parses and validates a config when it is saved, and once per version before it
	// is used. Its result is Request.Config. Encoded as JSON, the result is the stored form, with
	// or without defaults. ParseConfig reports all faulty fields at once (destination.Require and
	// Invalid, joined), with paths relative to the config. A handler without ConfigParser receives
	// the raw JSON (json.RawMessage), which must then hold no secrets, because nothing marks them.
	ConfigParser interface {
		ParseConfig(raw json.RawMessage) (any, error)
	}
	// ParamsParser checks what a request overrides for one destination. Without it, overrides are
	// rejected.
	ParamsParser interface {
		ParseParams(raw json.RawMessage) error
	}
	// Tester tests a connection for real, cleans up after itself and reports each step. A
	// destination that fails the test is a report; an error means that the test could not be made.
	Tester interface {
		Test(ctx context.Context, req *TestRequest) (*destination.TestReport, error)
	}
	// Describer describes the type for forms and lists.
	Describer interface {
		Describe() destination.TypeInfo
	}
	// Signer manages the secrets that a config signs with. Its errors are reported like those of
	// ParseConfig. It never changes the config that it is given.
	Signer interface {
		// Complete returns config with what the service is to generate once, such as a signing
		// secret. It is called with the result of ParseConfig when a destination is created or its
		// config changes. stored is the current config, nil on create: what was generated before is
		// kept.
		Complete(config, stored any) (any, error)
		// SigningSecrets returns the secrets that receivers verify with, newest first.
		SigningSecrets(config any) []destination.Secret
		// Rotate returns config with a new signing secret. The previous secrets stay valid until
		// r.Until.
		Rotate(config any, r Rotation) (any, error)
	}
	// Warner lists settings of a valid config that are probably unintended, with paths relative to
	// the config.
	Warner interface {
		Warn(config any) []*destination.FieldError
	}
	// Opener receives its environment from delivery.New, before anything else. An error makes New
	// fail. Open must not connect. DeliveryService.Close closes a handler that is an io.Closer.
	Opener interface {
		Open(env Env) error
	}
	// Forgetter drops what it keeps for a destination, such as connections, because the destination
	// was changed or deleted.
	Forgetter interface {
		Forget(destinationID string)
	}
	// Remover removes what deliveries wrote when the destination's retention is over. Retention is
	// the duration, 0 for ever, of the config as it is now; it is read when an item has been
	// delivered, and by Maintain. Remove is called for a Result that was Removable, from any
	// process, again after an error, and possibly again after a success.
	Remover interface {
		Retention(config any) time.Duration
		Remove(ctx context.Context, req *RemoveRequest) (Removal, error)
	}
	// Maintainer cleans up from time to time after a destination's dead attempts, from any process.
	// It must be safe to repeat, and remove only what deliveries left behind.
	Maintainer interface {
		Maintain(ctx context.Context, req *MaintainRequest) error
	}
)

// Request is one attempt at one item.
type Request struct {
	MessageID    string // names the item to the other side: the same in all attempts, and in no other item
	DeliveryID   string
	ItemID       string
	Attempt      int // from 1
	Organization string
	Destination  *destination.Destination // its Config is redacted; shared, not to be changed
	Config       any                      // what ParseConfig returned: req.Config.(Config); shared, not to be changed
	Payload      *payload.Content
	Topic        string
	Metadata     map[string]string // shared, not to be changed
	Params       json.RawMessage   // the request's override for this destination, if any
	CreatedAt    time.Time         // when the delivery was accepted
	Deadline     time.Time         // zero if there is none
	Test         bool              // a sample that a person sent to see what arrives
	TraceParent  string            // W3C trace context of the caller
	Transfer     Transfer          // behind Progress, Resume and Checkpoint; may be nil
}

// Transfer connects a Request to what is kept of a long transfer.
type Transfer interface {
	Progress(done int64)
	Resume() (json.RawMessage, error)
	Checkpoint(ctx context.Context, v json.RawMessage) error
}

// Open opens the payload at an offset. Reading it reports progress, and its errors are classified
// by Unreadable.
func (r *Request) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	c, err := r.Payload.OpenAt(ctx, offset)
	if err != nil {
		return nil, Unreadable(err)
	}
	return &progress{ReadCloser: c, request: r, done: offset}, nil
}

type progress struct {
	io.ReadCloser
	request *Request
	done    int64
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.done += int64(n)
	if n > 0 {
		p.request.Progress(p.done)
	}
	if err != nil && err != io.EOF { //nolint:errorlint // io.EOF is the end only when bare
		err = Unreadable(err)
	}
	return n, err
}

// Progress reports how many bytes the other side has. It may be called often and by several
// goroutines. A long attempt shows it in Item.Progress and in events, at most once a second.
func (r *Request) Progress(done int64) {
	if r.Transfer != nil {
		r.Transfer.Progress(done)
	}
}

// Resume reads the last checkpoint of an earlier attempt into v, and reports whether there was one.
func (r *Request) Resume(v any) (bool, error) {
	if r.Transfer == nil {
		return false, nil
	}
	raw, err := r.Transfer.Resume()
	if err != nil || raw == nil {
		return false, err
	}
	return true, json.Unmarshal(raw, v)
}

// Checkpoint keeps v for the next attempt. It is committed when Checkpoint returns. ErrLeaseLost
// means that the item belongs to another worker: stop.
func (r *Request) Checkpoint(ctx context.Context, v any) error {
	if r.Transfer == nil {
		return nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.Transfer.Checkpoint(ctx, raw)
}

// Result is what is recorded of an attempt besides its outcome. All fields are optional.
type Result struct {
	Reference Reference
	Exchange  *Exchange
	Parts     []Part
	Removable bool // what was written stays, is this item's alone, and can be removed by its Reference
	Notes     map[string]string
}

// Reference is the other side's own name for what it took.
type Reference struct {
	ID      string            `json:"id,omitempty"`
	URL     string            `json:"url,omitempty"`
	Details map[string]string `json:"details,omitempty"` // etag, version, checksum, smtp_reply
}

// Exchange is a request and its response as people read them. Handlers leave credentials out;
// values of headers that look like credentials are redacted once more.
type Exchange struct {
	Method          string              `json:"method,omitempty"`
	URL             string              `json:"url,omitempty"`
	RequestHeaders  map[string][]string `json:"request_headers,omitempty"`
	StatusCode      int                 `json:"status_code,omitempty"`
	ResponseHeaders map[string][]string `json:"response_headers,omitempty"`
	ResponseBody    string              `json:"response_body,omitempty"` // an excerpt
	Truncated       bool                `json:"truncated,omitempty"`     // there was more
	RemoteAddress   string              `json:"remote_address,omitempty"`
}

// Part is the outcome for one recipient or object, where outcomes differ.
type Part struct {
	Name      string    `json:"name"`
	Delivered bool      `json:"delivered"`
	Reference Reference `json:"reference,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// Env is what the host gives to a handler.
type Env struct {
	Logger *slog.Logger
	Now    func() time.Time
	// Dial and Client reach only the addresses that delivery.WithNetwork allows, whatever a name
	// resolves to. Client follows no redirects and ignores the proxy variables of the environment.
	// Handlers must not connect by other means.
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	Client *http.Client
	// CheckHost rejects a host when a config is saved, if Dial would refuse it, as far as that is
	// known without resolving the name.
	CheckHost func(host string) error
}

// TestRequest describes a connection test. DestinationID is "" before the destination is saved.
type TestRequest struct {
	Organization  string
	DestinationID string
	Config        any // what ParseConfig returned
}

// MaintainRequest is the destination to clean up after.
type MaintainRequest struct {
	Organization  string
	DestinationID string
	Config        any // what ParseConfig returned
}

// RemoveRequest says what to remove of a delivered item.
type RemoveRequest struct {
	Organization  string
	DestinationID string
	DeliveryID    string
	ItemID        string
	Config        any // what ParseConfig returned
	Reference     Reference
	WrittenAt     time.Time
}

// Removal is the outcome of a removal. The numbers are stored and never change.
type Removal int16

// The removals.
const (
	NotRemoved Removal = 0
	Removed    Removal = 1
	Missing    Removal = 2 // somebody else had removed it
	Changed    Removal = 3 // somebody else has replaced it: it is not what was written, and stays
)

func (r Removal) String() string {
	switch r {
	case NotRemoved:
		return "not removed"
	case Removed:
		return "removed"
	case Missing:
		return "missing"
	case Changed:
		return "changed"
	}
	return fmt.Sprintf("unknown(%d)", int16(r))
}

// MarshalText writes what String returns.
func (r Removal) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Rotation asks for a new signing secret.
type Rotation struct {
	Secret destination.Secret // the one to use; generated if it is not set
	Now    time.Time
	Until  time.Time // until when the secrets so far are used beside it; not after Now: not at all
}
