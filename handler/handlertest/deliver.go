//nolint:thelper // a check is a test: a failure names its own line
package handlertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

const large = 3 << 20

func (s *suite) sizes() []int64 {
	sizes := []int64{1, 17, 64 << 10}
	for _, n := range []int64{1 << 20, 1<<20 + 1, large} {
		if s.MaxContent == 0 || n <= s.MaxContent {
			sizes = append(sizes, n)
		}
	}
	return sizes
}

// random returns bytes of all values, the same for the same arguments.
func random(n int64, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// contents: what arrives is what was sent, of every size, whether the size and hash are known or
// not, and with no Transfer behind the request.
func (s *suite) contents(t *testing.T) {
	a := s.attempts(t, s.Peer)
	for _, n := range s.sizes() {
		sent := random(n, 1)
		req := a.request(t, payload.Bytes(fmt.Sprintf("%d bytes.bin", n), sent))
		a.delivers(t, req, sent)
	}
	for _, n := range []int64{5, s.sizes()[len(s.sizes())-1]} {
		sent := random(n, 2)
		req := a.request(t, payload.JSON(nil))
		req.Payload = payload.NewContent(payload.Info{ContentType: "application/octet-stream", Size: -1},
			func(_ context.Context, offset int64) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(sent[offset:])), nil
			})
		a.delivers(t, req, sent)
	}
	empty := a.request(t, payload.Bytes("empty", nil))
	if s.RefusesEmpty {
		if _, err := a.deliver(t, context.Background(), empty); err == nil {
			t.Error("empty content is accepted, though the Harness says RefusesEmpty")
		}
		return
	}
	a.delivers(t, empty, nil)
}

// repeated: after a crash the same message comes again.
func (s *suite) repeated(t *testing.T) {
	a := s.attempts(t, s.Peer)
	sent := random(1000, 3)
	req := a.request(t, payload.Bytes("twice.bin", sent))
	for attempt := range 2 {
		req.Attempt = attempt + 1
		if _, err := a.deliver(t, context.Background(), req); err != nil {
			t.Fatalf("attempt %d: %v", attempt+1, err)
		}
	}
	want := map[Repeat]int{Once: 1, Recognisable: 2, Twice: 2}[s.Repeat]
	got := a.peer.Received(req)
	if len(got) != want {
		t.Fatalf("the other side has %d of the message that came twice, want %d", len(got), want)
	}
	for _, b := range got {
		if !bytes.Equal(b, sent) {
			t.Error("the content of one differs")
		}
	}
}

// transfer: progress never passes the size, and checkpoints can be read again.
func (s *suite) transfer(t *testing.T) {
	a := s.attempts(t, s.Peer)
	sizes := s.sizes()
	sent := random(sizes[len(sizes)-1], 4)
	req := a.request(t, payload.Bytes("large.bin", sent))
	transfer := &transfer{}
	req.Transfer = transfer
	a.delivers(t, req, sent)
	if done := transfer.furthest(); done > int64(len(sent)) {
		t.Errorf("progress reports %d of %d bytes", done, len(sent))
	}
}

// concurrent: one handler serves many attempts at once. Run it with -race.
func (s *suite) concurrent(t *testing.T) {
	a := s.attempts(t, s.Peer)
	parsed := a.request(t, payload.JSON(nil)).Config
	var group sync.WaitGroup
	for worker := range 8 {
		sent := random(50_000+int64(worker), byte(worker))
		reqs := make([]*handler.Request, 3)
		for i := range reqs {
			reqs[i] = a.request(t, payload.Bytes(fmt.Sprintf("%d-%d.bin", worker, i), sent))
			reqs[i].Config = parsed // shared, as by a service
		}
		group.Go(func() {
			for _, req := range reqs {
				a.delivers(t, req, sent)
			}
		})
	}
	group.Wait()
}

// unchanged: a Request is shared with the service.
func (s *suite) unchanged(t *testing.T) {
	a := s.attempts(t, s.Peer)
	req := a.request(t, payload.JSON(map[string]string{"a": "b"}))
	snapshot := func() map[string]any {
		config, err := destination.Reveal(req.Config)
		if err != nil {
			t.Fatal(err)
		}
		where, err := json.Marshal(req.Destination)
		if err != nil {
			t.Fatal(err)
		}
		metadata, err := json.Marshal(req.Metadata)
		if err != nil {
			t.Fatal(err)
		}
		plain := *req
		plain.Config, plain.Destination, plain.Payload, plain.Metadata = nil, nil, nil, nil
		return map[string]any{"Config": string(config), "Destination": string(where), "Metadata": string(metadata),
			"Payload": req.Payload, "others": plain}
	}
	before := snapshot()
	if _, err := a.deliver(t, context.Background(), req); err != nil {
		t.Fatal(err)
	}
	for field, now := range snapshot() {
		if !reflect.DeepEqual(before[field], now) {
			t.Errorf("%s of the Request has changed:\n%v\n%v", field, before[field], now)
		}
	}
}

// unreadable: a payload that cannot be read is no delivery, and not held against the destination.
func (s *suite) unreadable(t *testing.T) {
	a := s.attempts(t, s.Peer)
	broken := errors.New("the payload store is away")
	for _, n := range []int64{1000, s.sizes()[len(s.sizes())-1]} {
		for _, at := range []int64{0, n - 1} {
			req := a.request(t, payload.JSON(nil))
			req.Payload = payload.NewContent(payload.Info{Name: "broken.bin", ContentType: "text/plain", Size: n},
				func(_ context.Context, offset int64) (io.ReadCloser, error) {
					good := bytes.NewReader(random(n, 5)[min(offset, at):at])
					return io.NopCloser(io.MultiReader(good, failing{broken})), nil
				})
			_, err := a.deliver(t, context.Background(), req)
			if err == nil {
				t.Errorf("%d bytes that break off after %d are delivered", n, at)
				continue
			}
			if e := handler.Classify(err); e.Category != handler.Internal || !e.WillRetry() {
				t.Errorf(
					"%d bytes that break off after %d: a %s failure, want internal, to be retried: %v", n, at,
					e.Category, err,
				)
			}
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// transfer keeps checkpoints and the most progress seen.
type transfer struct {
	mu         sync.Mutex
	done       int64
	checkpoint json.RawMessage
}

func (x *transfer) Progress(done int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.done = max(x.done, done)
}

func (x *transfer) Resume() (json.RawMessage, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.checkpoint, nil
}

func (x *transfer) Checkpoint(ctx context.Context, v json.RawMessage) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.checkpoint = v
	return ctx.Err()
}

func (x *transfer) furthest() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.done
}
