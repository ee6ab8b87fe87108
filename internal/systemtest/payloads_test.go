package systemtest_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage/local"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// reading keeps what it is delivered.
type reading struct {
	testkit.Fake
	mu  sync.Mutex
	got [][]byte
	err error
}

func newReading() *reading {
	r := &reading{}
	r.Fake.Do = func(ctx context.Context, req *handler.Request) (*handler.Result, error) {
		if r.err != nil {
			return nil, r.err
		}
		b, err := req.Payload.ReadAll(ctx, 100<<20)
		if err != nil {
			return nil, handler.Unreadable(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, b)
		return nil, nil
	}
	return r
}

func newStore(t *testing.T) (s payload.Store, dir string) {
	t.Helper()
	dir = t.TempDir()
	s, err := local.PayloadStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// stored lists the files of a store, temporary ones too.
func stored(t *testing.T, dir string) (all []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func bytesOf(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(b)
	return b
}

func TestPayloadStore(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		h := newReading()
		store, dir := newStore(t)
		svc := testkit.Service(t, db, h, c.Option(), delivery.WithPayloadStore(store))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		large, small := bytesOf(3<<20+17), bytesOf(1000)
		testkit.Send(t, acme, delivery.Request{Payload: payload.Reader("large", bytes.NewReader(large))})
		testkit.Send(t, acme, delivery.Request{Payload: payload.Reader("small", bytes.NewReader(small))})
		staged := testkit.Try(acme.Stage(t.Context(), payload.Reader("staged", bytes.NewReader(large[1:])))).Must(t)
		empty := testkit.Try(acme.Stage(t.Context(), payload.Bytes("empty", nil))).Must(t)
		testkit.Send(t, acme, delivery.Request{Payload: staged})
		testkit.Send(t, acme, delivery.Request{Payload: empty})
		testkit.Process(t, svc)
		want := map[string]bool{string(large): true, string(small): true, string(large[1:]): true, "": true}
		for _, b := range h.got {
			if !want[string(b)] {
				t.Errorf("%d other bytes were delivered", len(b))
			}
			delete(want, string(b))
		}
		if len(want) != 0 {
			t.Errorf("%d payloads were not delivered", len(want))
		}
		if n, files := testkit.Count(t, db, "delivery_payload_chunks"), stored(t, dir); n != 0 || len(files) != 3 {
			t.Errorf("%d chunks in the database, and %q", n, files)
		}
	})
}

// What is refused, fails or is a repetition leaves nothing behind.
func TestPayloadStoreAfterFailures(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		store, dir := newStore(t)
		svc := testkit.Service(t, db, newReading(), delivery.WithPayloadStore(store), delivery.WithQuotas(delivery.Quotas{Payload: 4 << 20}))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{})
		large := bytesOf(3 << 20)
		request := func() delivery.Request {
			return delivery.Request{Payload: payload.Reader("large", bytes.NewReader(large)), Destinations: []string{d.ID}, IdempotencyKey: "k"}
		}
		testkit.Send(t, acme, request())
		broken := errors.New("the export broke")
		for name, req := range map[string]delivery.Request{
			"repetition":          request(),
			"conflict":            {Payload: payload.Reader("x", bytes.NewReader(large[1:])), Destinations: []string{d.ID}, IdempotencyKey: "k"},
			"unknown destination": {Payload: payload.Reader("x", bytes.NewReader(large)), Destinations: []string{"01890000-0000-7000-8000-000000000000"}},
			"too large":           {Payload: payload.Reader("x", io.LimitReader(rand.NewChaCha8([32]byte{}), 5<<20)), Destinations: []string{d.ID}},
			"broken": {Payload: payload.Writer("x", func(w io.Writer) error {
				_, err := w.Write(large)
				return errors.Join(err, broken)
			}), Destinations: []string{d.ID}},
		} {
			_, err := acme.Deliver(t.Context(), req)
			if name == "broken" && !errors.Is(err, broken) || name == "too large" && !errors.Is(err, payload.ErrTooLarge) {
				t.Errorf("%s: %v", name, err)
			}
			if (name == "repetition") != (err == nil) {
				t.Errorf("%s: %v", name, err)
			}
			if files, rows := stored(t, dir), testkit.Count(t, db, "delivery_payloads"); len(files) != 1 || rows != 1 {
				t.Errorf("%s leaves %q and %d rows", name, files, rows)
			}
		}
	})
}

// faulty is a store that fails to put.
type faulty struct {
	payload.Store
	put func(r io.Reader) error
}

func (f faulty) Put(_ context.Context, _ string, r io.Reader) error { return f.put(r) }

func TestFaultyPayloadStores(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		inner, _ := newStore(t)
		full := errors.New("the bucket is full")
		for name, put := range map[string]func(io.Reader) error{
			"fails at once":   func(io.Reader) error { return full },
			"fails later":     func(r io.Reader) error { _, err := io.CopyN(io.Discard, r, 2<<20); return errors.Join(err, full) },
			"fails at last":   func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return errors.Join(err, full) },
			"reads a part":    func(r io.Reader) error { _, err := io.CopyN(io.Discard, r, 10); return err },
			"panics":          func(io.Reader) error { panic("boom") },
			"panics at last":  func(r io.Reader) error { _, _ = io.Copy(io.Discard, r); panic("boom") },
			"nothing of this": func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
		} {
			svc := testkit.Service(t, db, newReading(), delivery.WithPayloadStore(faulty{inner, put}))
			_, err := svc.Org("acme").Stage(t.Context(), payload.Reader("x", bytes.NewReader(bytesOf(5<<20))))
			if ok := name == "nothing of this"; ok != (err == nil) {
				t.Errorf("%s: %v", name, err)
			}
			if strings.HasPrefix(name, "fails") && !errors.Is(err, full) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := testkit.Count(t, db, "delivery_payloads"); n != 1 {
			t.Errorf("%d payloads are left, want that of the one that did not fail", n)
		}
	})
}

// Maintain removes what nobody needs, and nothing that a pending item, a dead letter, a retained
// delivery or a recent staging needs.
func TestPayloadsAreCollected(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		c.Set(time.Now())
		h := newReading()
		store, dir := newStore(t)
		const day = 24 * time.Hour
		svc := testkit.Service(t, db, h, c.Option(), delivery.WithPayloadStore(store), delivery.WithRetention(delivery.Retention{Deliveries: 3 * day, DeadLetters: 10 * day}))
		without := testkit.Service(t, db, h, c.Option())
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		large := func() payload.Payload { return payload.Reader("x", bytes.NewReader(bytesOf(200_000))) }
		maintain := func(svc *delivery.DeliveryService, dropped, left int) {
			t.Helper()
			chores := testkit.Try(svc.Maintain(t.Context())).Must(t)
			if files := stored(t, dir); chores.PayloadsDropped != dropped || len(files) != left || chores.OrphansDropped != 0 {
				t.Errorf("%+v, %d files are left, want %d dropped and %d left", chores, len(files), dropped, left)
			}
		}
		testkit.Send(t, acme, delivery.Request{Payload: large()})
		testkit.Process(t, svc)
		h.err = handler.Permanent(errors.New("no"))
		testkit.Send(t, acme, delivery.Request{Payload: large()})
		testkit.Process(t, svc)
		h.err = nil
		waiting := testkit.Send(t, acme, delivery.Request{Payload: large(), NotBefore: c.Now().Add(30 * day)})
		testkit.Try(acme.Stage(t.Context(), large())).Must(t)
		recent := testkit.Try(acme.Stage(t.Context(), large())).Must(t)

		c.Advance(23 * time.Hour)
		maintain(svc, 0, 5)
		testkit.Send(t, acme, delivery.Request{Payload: recent, NotBefore: c.Now().Add(30 * day)})
		c.Advance(2 * time.Hour)
		maintain(without, 0, 5) // it has not the store, and must not forget what is there
		c.Advance(time.Hour)
		maintain(svc, 1, 4) // the one that was staged in vain
		c.Advance(3 * day)
		maintain(svc, 1, 3) // the one that was delivered
		c.Advance(8 * day)
		maintain(svc, 1, 2) // the dead letter
		c.Advance(30 * day)
		h.got = nil
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, waiting); s.State != queue.Completed || len(h.got) != 2 {
			t.Errorf("%s, %d were delivered", testkit.Show(s), len(h.got))
		}
		maintain(svc, 2, 0)
	})
}

// A process without the store tries again later, and loses nothing.
func TestProcessWithoutTheStore(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		h := newReading()
		store, _ := newStore(t)
		svc, without := testkit.Service(t, db, h, c.Option(), delivery.WithPayloadStore(store)), testkit.Service(t, db, h, c.Option())
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		id := testkit.Send(t, acme, delivery.Request{Payload: payload.Reader("x", bytes.NewReader(bytesOf(200_000)))})
		testkit.Process(t, without)
		if s := testkit.Status(t, acme, id); s.State.Ended() || len(h.got) != 0 {
			t.Errorf("%s", testkit.Show(s))
		}
		c.Advance(time.Hour)
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, id); s.State != queue.Completed || len(h.got) != 1 {
			t.Errorf("%s", testkit.Show(s))
		}
	})
}

// What is in the store and belongs to nothing is removed after a day, unless it is another
// database's.
func TestOrphansAreCollected(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		store, dir := newStore(t)
		svc := testkit.Service(t, db, newReading(), delivery.WithPayloadStore(store))
		testkit.Try(svc.Org("acme").Stage(t.Context(), payload.Reader("x", bytes.NewReader(bytesOf(200_000))))).Must(t)
		known := stored(t, dir)
		if len(known) != 1 {
			t.Fatalf("%q", known)
		}
		folder := filepath.Dir(known[0])
		old, recent, foreign := filepath.Join(folder, "old"), filepath.Join(folder, "recent"), filepath.Join(dir, "payloads", "other", "ab", "x")
		for _, file := range []string{old, recent, foreign} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("x"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		long := time.Now().Add(-48 * time.Hour)
		for _, file := range []string{old, foreign, known[0]} {
			if err := os.Chtimes(file, long, long); err != nil {
				t.Fatal(err)
			}
		}
		if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.OrphansDropped != 1 {
			t.Errorf("%+v", chores)
		}
		if left := stored(t, dir); len(left) != 3 || strings.Contains(strings.Join(left, " "), old) {
			t.Errorf("left: %q", left)
		}
	})
}

// A staged payload that is a day old is delivered in a host's transaction while Maintain looks for
// what is unused: it is either refused or kept.
func TestCollectingBesideATransaction(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		if testkit.IsSQLite(db) {
			t.Skip("its writers exclude each other")
		}
		c := testkit.NewClock()
		h := newReading()
		store, dir := newStore(t)
		svc := testkit.Service(t, db, h, c.Option(), delivery.WithPayloadStore(store))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		staged := testkit.Try(acme.Stage(t.Context(), payload.Reader("x", bytes.NewReader(bytesOf(200_000))))).Must(t)
		c.Advance(25 * time.Hour)
		tx := testkit.Try(db.BeginTx(t.Context(), nil)).Must(t)
		defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do
		if _, err := acme.DeliverTx(t.Context(), tx, delivery.Request{Payload: staged}); err != nil {
			t.Fatal(err)
		}
		if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.PayloadsDropped != 0 || len(stored(t, dir)) != 1 {
			t.Errorf("%+v", chores)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		testkit.Process(t, svc)
		if len(h.got) != 1 {
			t.Error("not delivered")
		}
	})
}
