package handlertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// attempts makes attempts of one open handler on one peer, and searches all that comes of them for
// secrets.
type attempts struct {
	suite *suite
	h     handler.Handler
	peer  Peer
	log   log
	label string // of all goroutines that attempts start
}

const labelKey = "handlertest"

// attempts starts a peer and opens a handler. When the test ends, no goroutine of an attempt may be
// left.
func (s *suite) attempts(t *testing.T, start func(testing.TB) Peer) *attempts {
	t.Helper()
	a := &attempts{suite: s, peer: s.peer(t, start), label: newID(t)}
	t.Cleanup(func() { search(t, "the log", a.log.String(), a.peer.Secrets) })
	t.Cleanup(func() { a.left(t) }) // after the handler and the connections of its environment are closed
	a.h = s.handler(t, &a.log)
	return a
}

func (a *attempts) request(t *testing.T, content payload.Payload) *handler.Request {
	t.Helper()
	return request(t, a.h, a.peer.Config, Content(t, content))
}

// deliver makes an attempt, and searches its outcome.
func (a *attempts) deliver(
	t *testing.T, ctx context.Context, req *handler.Request,
) (result *handler.Result, err error) {
	t.Helper()
	pprof.Do(ctx, pprof.Labels(labelKey, a.label), func(ctx context.Context) {
		result, err = a.h.Deliver(ctx, req)
	})
	if result != nil {
		b, jsonErr := json.Marshal(result)
		if jsonErr != nil {
			t.Errorf("the Result cannot be encoded: %v", jsonErr)
		}
		search(t, "the Result", string(b), a.peer.Secrets)
		if bytes.Contains(b, []byte(`\u0000`)) {
			t.Error("the Result holds a NUL, which not every database takes")
		}
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		search(t, "the error", fmt.Sprintf("%v %+v", e, e), a.peer.Secrets)
	}
	return result, err
}

// delivers makes an attempt that must succeed, and checks what the other side has of it.
func (a *attempts) delivers(t *testing.T, req *handler.Request, sent []byte) {
	t.Helper()
	if _, err := a.deliver(t, context.Background(), req); err != nil {
		t.Errorf("%d bytes: %v", len(sent), err)
		return
	}
	got := a.peer.Received(req)
	if len(got) != 1 || !bytes.Equal(got[0], sent) {
		t.Errorf("%d bytes were sent, and the other side has %s", len(sent), sizes(got))
	}
}

func sizes(contents [][]byte) string {
	if len(contents) == 0 {
		return "nothing"
	}
	parts := make([]string, len(contents))
	for i, c := range contents {
		parts[i] = fmt.Sprintf("%d bytes", len(c))
	}
	return strings.Join(parts, " and ")
}

// left fails the test if a goroutine that an attempt started is alive. It knows them by the label
// that they inherit, so that tests which run beside it are left out.
func (a *attempts) left(t *testing.T) {
	t.Helper()
	patience := time.NewTimer(a.suite.Patience)
	defer patience.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var profile bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
			t.Fatal(err)
		}
		var alive []string
		for stack := range strings.SplitSeq(profile.String(), "\n\n") {
			if strings.Contains(stack, a.label) {
				alive = append(alive, stack)
			}
		}
		if len(alive) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-patience.C:
			t.Errorf("goroutines of attempts are left after the handler was closed:\n%s", strings.Join(alive, "\n\n"))
			return
		}
	}
}

type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
