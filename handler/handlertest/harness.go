package handlertest

import (
	"io"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// Harness describes a handler to Run: how to make one, the other sides to try it on, and in what it
// differs from what the suite expects by default.
type Harness struct {
	// New returns a handler that is not open. Required.
	New func() handler.Handler
	// Peer starts another side that takes what it is sent until the test ends. Each call gives one
	// of its own. Required.
	Peer func(t testing.TB) Peer
	// Hanging starts another side that takes the connection and then never answers. Required, but
	// for Local.
	Hanging func(t testing.TB) Peer
	// Faults are other sides that fail. At least one is required.
	Faults []Fault
	// Invalid are configs that must be refused. At least one with two faulty fields is required,
	// but for Unvalidated.
	Invalid []Invalid

	// Repeat says what the other side has after the same message has come twice.
	Repeat Repeat
	// MaxContent is the largest content that the other side takes, for those that have a limit
	// below 3 MiB.
	MaxContent int64
	// RefusesEmpty says that content without bytes is no delivery here: it must be refused, not
	// lost.
	RefusesEmpty bool
	// NoSecrets says that the config has no credentials: Peer.Secrets is then empty.
	NoSecrets bool
	// Unvalidated says that no config is invalid, because the handler takes any JSON.
	Unvalidated bool
	// Local says that the handler waits for no other side, so that there is none to hang.
	Local bool
	// Untestable says that the handler has no Tester.
	Untestable bool
	// Patience is within what time an attempt must return after its context has ended: 5 s.
	Patience time.Duration
}

// Peer is the other side, for the length of a test.
type Peer struct {
	// Config leads to it. Fields that the service would generate may be missing.
	Config destination.Config
	// Secrets are the credentials in Config, which the suite must find nowhere. Take values that
	// nothing else contains.
	Secrets []string
	// Received returns what came for a request, in its order: one content per effect on the other
	// side. Hanging and failing peers need none.
	Received func(req *handler.Request) [][]byte
}

// Fault is another side that fails, and what the handler must make of it.
type Fault struct {
	Name       string
	Peer       func(t testing.TB) Peer
	Category   handler.Category
	WillRetry  bool
	Disables   bool // the verdict is handler.Disable
	StatusCode int  // 0 for a protocol without, or no answer
}

// Invalid is a config that must be refused, with the paths of exactly the faulty fields.
type Invalid struct {
	Name   string
	Config destination.Config
	Paths  []string
}

// Repeat says what the other side has of a message that came twice, as it may after a crash.
type Repeat int

const (
	// Once says that the second has no effect, or replaces the first.
	Once Repeat = iota
	// Recognisable says that both are there, and the receiver can tell by the message id, which
	// Peer.Received must check.
	Recognisable
	// Twice says that both are there, and nothing tells; the documentation of the handler has to
	// say so.
	Twice
)

// Run runs the suite. Each of its checks is a subtest.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if !h.complete(t) {
		return
	}
	s := &suite{Harness: h}
	for _, check := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"config/round trip", s.roundTrip},
		{"config/invalid", s.invalid},
		{"config/malformed", s.malformed},
		{"config/secrets", s.hidden},
		{"config/rotate", s.rotate},
		{"config/warn", s.warn},
		{"describe", s.describe},
		{"deliver/contents", s.contents},
		{"deliver/repeated", s.repeated},
		{"deliver/transfer", s.transfer},
		{"deliver/concurrent", s.concurrent},
		{"deliver/request unchanged", s.unchanged},
		{"deliver/unreadable payload", s.unreadable},
		{"faults", s.faults},
		{"cancel/before", s.cancelledBefore},
		{"cancel/hanging", s.hanging},
		{"test", s.tester},
	} {
		t.Run(check.name, func(t *testing.T) {
			t.Parallel()
			check.run(t)
		})
	}
}

func (h *Harness) complete(t *testing.T) bool {
	t.Helper()
	missing := func(bad bool, what string) {
		if bad {
			t.Error("handlertest: the Harness has no " + what)
		}
	}
	several := false
	for _, i := range h.Invalid {
		several = several || len(i.Paths) > 1
	}
	missing(h.New == nil, "New")
	missing(h.Peer == nil, "Peer")
	missing(h.Hanging == nil && !h.Local, "Hanging, and does not say Local")
	missing(len(h.Faults) == 0, "Faults")
	missing(!several && !h.Unvalidated, "Invalid with two faulty fields, and does not say Unvalidated")
	if h.New != nil {
		handled := h.New()
		_, testable := handler.As[handler.Tester](handled)
		missing(!testable && !h.Untestable, "Untestable, though the handler has no Test")
		_, parses := handler.As[handler.ConfigParser](handled)
		missing(
			!parses && (!h.NoSecrets || !h.Unvalidated),
			"NoSecrets and Unvalidated, though the handler has no ParseConfig",
		)
	}
	if h.Patience == 0 {
		h.Patience = 5 * time.Second
	}
	return !t.Failed()
}

// peer starts a Peer that must accept.
func (s *suite) peer(t *testing.T, start func(testing.TB) Peer) Peer {
	t.Helper()
	p := start(t)
	if p.Config == nil {
		t.Fatal("handlertest: the Peer has no Config")
	}
	if len(p.Secrets) == 0 && !s.NoSecrets {
		t.Fatal("handlertest: the Peer has no Secrets, and the Harness does not say NoSecrets")
	}
	return p
}

type suite struct{ Harness }

// handler returns an open handler whose log goes to w.
func (s *suite) handler(t *testing.T, w io.Writer) handler.Handler {
	t.Helper()
	h := s.New()
	open(t, h, environment(t, w))
	return h
}
