package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestDeliverToDefaults(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Label: "SIEM", Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{
			Topic: "audit.login", Payload: payload.JSON(map[string]int{"a": 1}), Metadata: map[string]string{"k": "v"},
		}))
		pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if pass.Attempts != 1 || pass.Delivered != 1 || !pass.Next.IsZero() {
			t.Errorf("pass is %+v", pass)
		}
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if s.State != queue.Completed || len(s.Items) != 1 || s.Items[0].Destination != d.ID || s.Items[0].Label != "SIEM" {
			t.Errorf("status is %s", show(s))
		}
		if len(f.requests) != 1 {
			t.Fatalf("%d requests", len(f.requests))
		}
		r := f.requests[0]
		if r.Organization != "acme" || r.Topic != "audit.login" || r.Metadata["k"] != "v" || r.Attempt != 1 ||
			r.Config.(script).Token.Reveal() != "s3cret" || f.contents[0] != `{"a":1}` || r.ItemID != receipt.Items[0].ID {
			t.Errorf("request is %+v, content %q", r, f.contents[0])
		}
	})
}

func TestOneFailingDestinationDoesNotTouchTheOthers(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var bad string
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Destination.ID == bad {
				return nil, handler.Permanent(errors.New("never"))
			}
			return &handler.Result{Reference: handler.Reference{ID: "theirs"}}, nil
		}}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		good := create(t, acme, destination.Spec{})
		bad = create(t, acme, destination.Spec{}).ID
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{
			Payload: payload.Bytes("a.txt", []byte("x")), Destinations: []string{bad, good.ID, bad},
		}))
		if len(receipt.Items) != 2 || receipt.Items[0].Destination != bad || receipt.Items[1].Destination != good.ID {
			t.Fatalf("receipt is %+v", receipt)
		}
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if s.State != queue.PartiallyFailed || s.Items[0].Reason != queue.Permanent || s.Items[1].Reference.ID != "theirs" {
			t.Errorf("status is %s", show(s))
		}
		if h := must[*destination.Destination](t)(acme.Destinations().Get(t.Context(), bad)).Health; h.ConsecutiveFailures != 1 ||
			h.FailingSince.IsZero() || h.LastFailure.IsZero() {
			t.Errorf("health is %+v", h)
		}
	})
}

func TestRetryUntilExhausted(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, errors.New("no luck")
		}}
		svc := service(t, db, f, c.option(), delivery.WithRetry(retry.Policy{Retries: 2, Jitter: -1}))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		start := c.now()
		for i, wait := range []time.Duration{time.Second, 2 * time.Second, 0} {
			pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
			if pass.Attempts != 1 || wait > 0 && !pass.Next.Equal(c.now().Add(wait)) {
				t.Fatalf("pass %d at %s is %+v", i+1, c.now(), pass)
			}
			c.advance(wait)
		}
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		i := s.Items[0]
		if s.State != queue.Failed || i.State != queue.Dead || i.Reason != queue.Exhausted || len(i.Attempts) != 3 {
			t.Fatalf("status is %s", show(s))
		}
		a := i.Attempts[1]
		if a.Number != 2 || a.Error.Message != "no luck" || !a.StartedAt.Equal(start.Add(time.Second)) || !a.NextAttempt.Equal(start.Add(3*time.Second)) {
			t.Errorf("second attempt is %+v", a)
		}
		if h := must[*destination.Destination](t)(acme.Destinations().Get(t.Context(), d.ID)).Health; h.ConsecutiveFailures != 3 {
			t.Errorf("health is %+v", h)
		}
	})
}

func TestSuccessEndsTheCountOfFailures(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		var fail atomic.Bool
		fail.Store(true)
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			if fail.Load() {
				return nil, errors.New("not yet")
			}
			return nil, nil
		}}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		fail.Store(false)
		c.advance(time.Minute)
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID)); s.State != queue.Completed || len(s.Items[0].Attempts) != 2 {
			t.Errorf("status is %s", show(s))
		}
		if h := must[*destination.Destination](t)(acme.Destinations().Get(t.Context(), d.ID)).Health; h.ConsecutiveFailures != 0 || !h.FailingSince.IsZero() {
			t.Errorf("health is %+v", h)
		}
	})
}

func TestPriorityNotBeforeDeadline(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		svc := service(t, db, f, c.option(), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		send := func(topic string, r delivery.Request) string {
			r.Topic, r.Payload = topic, payload.Bytes("x", nil)
			return must[*delivery.Receipt](t)(acme.Deliver(t.Context(), r)).ID
		}
		send("low", delivery.Request{Priority: delivery.Low})
		send("normal", delivery.Request{})
		send("highest", delivery.Request{Priority: delivery.Highest})
		later := send("later", delivery.Request{NotBefore: c.now().Add(time.Hour)})
		send("in time", delivery.Request{Deadline: c.now().Add(time.Hour)})
		dead := send("dead", delivery.Request{NotBefore: c.now().Add(30 * time.Minute), Deadline: c.now().Add(40 * time.Minute)})
		pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if got, want := strings.Join(f.topics(), " "), "highest normal in time low"; got != want {
			t.Errorf("order is %q, want %q", got, want)
		}
		if !pass.Next.Equal(c.now().Add(30 * time.Minute)) {
			t.Errorf("next is %s", pass.Next)
		}
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), later)); s.State != queue.Queued || s.Items[0].Reason != queue.NotBefore ||
			!s.Items[0].NextAttempt.Equal(c.now().Add(time.Hour)) {
			t.Errorf("status is %s", show(s))
		}
		c.advance(time.Hour)
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if got := f.topics(); len(got) != 5 || got[4] != "later" {
			t.Errorf("delivered %q", got)
		}
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), dead)); s.State != queue.Failed || s.Items[0].Reason != queue.DeadlinePassed {
			t.Errorf("status is %s", show(s))
		}
	})
}

func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		if err := svc.Org("other").Cancel(t.Context(), receipt.ID); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("another organization gets %v", err)
		}
		if err := acme.Cancel(t.Context(), receipt.ID); err != nil {
			t.Fatal(err)
		}
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if s.State != queue.AllCancelled || len(s.Items) != 2 || s.Items[1].Reason != queue.Requested || f.count() != 0 {
			t.Errorf("status is %s after %d attempts", show(s), f.count())
		}
		if err := acme.Cancel(t.Context(), receipt.ID); !errors.Is(err, delivery.ErrEnded) {
			t.Errorf("a second time: %v", err)
		}
	})
}

func TestCancelInFlight(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		began := make(chan struct{})
		f := &fake{deliver: func(ctx context.Context, _ *handler.Request) (*handler.Result, error) {
			close(began)
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		svc := service(t, db, f, lease(300*time.Millisecond))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		run(t, svc)
		<-began
		if err := acme.Cancel(t.Context(), receipt.ID); err != nil {
			t.Fatal(err)
		}
		s := must[*delivery.Status](t)(acme.WaitFor(within(t, 20*time.Second), receipt.ID))
		if s.State != queue.AllCancelled || f.count() != 1 {
			t.Errorf("status is %s after %d attempts", show(s), f.count())
		}
	})
}

func TestWaitForSeesWhatAnotherProcessDoes(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		sender, err := delivery.New(db)
		if err != nil {
			t.Fatal(err)
		}
		worker := service(t, db, &fake{})
		create(t, worker.Org("acme"), destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(sender.Org("acme").Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		if pass := must[delivery.Pass](t)(sender.ProcessDue(t.Context())); pass.Attempts != 0 {
			t.Errorf("a process without the handler made %d attempts", pass.Attempts)
		}
		run(t, worker)
		s := must[*delivery.Status](t)(sender.Org("acme").WaitFor(within(t, 20*time.Second), receipt.ID))
		if s.State != queue.Completed {
			t.Errorf("status is %s", show(s))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := sender.Org("acme").WaitFor(ctx, receipt.ID); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}

func TestProcessesShareTheWork(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		const items, processes = 500, 4
		var mu sync.Mutex
		seen := map[string]int{}
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			mu.Lock()
			defer mu.Unlock()
			seen[r.ItemID]++
			return nil, nil
		}}
		var services []*delivery.DeliveryService
		for range processes {
			services = append(services, service(t, db, f, delivery.WithWorkers(8)))
		}
		acme := services[0].Org("acme")
		for range 7 {
			create(t, acme, destination.Spec{Default: true})
		}
		reqs := make([]delivery.Request, items/7)
		for i := range reqs {
			reqs[i].Payload = payload.JSON(i)
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), reqs))
		var wg sync.WaitGroup
		var delivered atomic.Int64
		for _, svc := range services {
			wg.Go(func() {
				pass, err := svc.ProcessDue(t.Context())
				if err != nil {
					t.Error(err)
				}
				delivered.Add(int64(pass.Delivered))
			})
		}
		wg.Wait()
		if len(seen) != len(reqs)*7 || int(delivered.Load()) != len(seen) {
			t.Errorf("%d items attempted, %d delivered, of %d", len(seen), delivered.Load(), len(reqs)*7)
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("item %s was attempted %d times", id, n)
			}
		}
	})
}

func TestRunEndsCleanly(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var began, wait sync.WaitGroup
		began.Add(1)
		wait.Add(1)
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			began.Done()
			wait.Wait()
			return nil, nil
		}}
		svc := service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		first := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		second := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- svc.Run(ctx) }()
		began.Wait()
		if err := svc.Run(ctx); !errors.Is(err, delivery.ErrRunning) {
			t.Errorf("a second Run: %v", err)
		}
		cancel()
		select {
		case err := <-done:
			t.Fatalf("Run returned %v before what was in flight was done", err)
		case <-time.After(50 * time.Millisecond):
		}
		wait.Done()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), first.ID)); s.State != queue.Completed {
			t.Errorf("what was in flight is %s", show(s))
		}
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), second.ID)); s.State != queue.Queued || s.Items[0].State != queue.Ready ||
			len(s.Items[0].Attempts) != 0 {
			t.Errorf("what waited is %s", show(s))
		}
	})
}

func TestShutdownReleasesWhatIsNotDone(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		began := make(chan struct{}, 1)
		f := &fake{deliver: func(ctx context.Context, _ *handler.Request) (*handler.Result, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		svc := service(t, db, f, delivery.WithShutdownTimeout(0))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-began
			cancel()
		}()
		if err := svc.Run(ctx); err != nil {
			t.Fatal(err)
		}
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if i := s.Items[0]; i.State != queue.Ready || len(i.Attempts) != 1 || i.Attempts[0].Number != 0 || i.Attempts[0].Reason != queue.Released {
			t.Errorf("status is %s", show(s))
		}
		if h := must[*destination.Destination](t)(acme.Destinations().Get(t.Context(), d.ID)).Health; h.ConsecutiveFailures != 0 {
			t.Errorf("our shutdown is held against the destination: %+v", h)
		}
	})
}

func TestLostLeases(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		claim := func() { // as a process that dies right after its claim
			t.Helper()
			leaseItems(t, db, c.now().Add(30*time.Second), 0, `state = 0`)
		}
		f := &fake{}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		for i := range 3 {
			claim()
			if pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context())); pass.Attempts != 0 {
				t.Fatalf("a leased item was attempted: %+v", pass)
			}
			c.advance(31 * time.Second)
			if i < 2 {
				sweepOnly(t, db, c)
			}
		}
		if pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context())); pass.Dead != 1 || pass.Attempts != 0 {
			t.Errorf("pass is %+v", pass)
		}
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		i := s.Items[0]
		if i.State != queue.Dead || i.Reason != queue.Poison || len(i.Attempts) != 3 || i.Attempts[0].Reason != queue.LeaseLost ||
			i.Attempts[0].Number != 0 || f.count() != 0 {
			t.Errorf("status is %s", show(s))
		}
	})
}

// sweepOnly lets a process that has no handlers find what has expired.
func sweepOnly(t *testing.T, db *sql.DB, c *clock) {
	t.Helper()
	svc, err := delivery.New(db, c.option())
	if err != nil {
		t.Fatal(err)
	}
	must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
}

// A worker that was stopped and wakes after its lease has ended must not overwrite what became of the item meanwhile,
// whether that has ended or waits for a retry.
func TestStaleWorkerOverwritesNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for name, meanwhile := range map[string]error{"delivered": nil, "failed": errors.New("fresh")} {
			t.Run(name, func(t *testing.T) {
				c := newClock()
				began, wake := make(chan struct{}), make(chan struct{})
				stale := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
					close(began)
					<-wake
					return &handler.Result{Reference: handler.Reference{ID: "stale"}}, nil
				}}
				fresh := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
					return &handler.Result{Reference: handler.Reference{ID: "fresh"}}, meanwhile
				}}
				old, other := service(t, db, stale, c.option()), service(t, db, fresh, c.option())
				acme := old.Org("acme " + name)
				create(t, acme, destination.Spec{Default: true})
				receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
				done := make(chan delivery.Pass)
				ctx, stop := context.WithCancel(t.Context())
				go func() {
					pass, err := old.ProcessDue(ctx)
					if !errors.Is(err, context.Canceled) {
						t.Errorf("the stale process: %v", err)
					}
					done <- pass
				}()
				<-began
				stop() // it claims nothing more, and waits for its attempt
				c.advance(time.Minute)
				if pass := must[delivery.Pass](t)(other.ProcessDue(t.Context())); pass.Attempts != 1 {
					t.Errorf("the other process did %+v", pass)
				}
				before := show(must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID)))
				close(wake)
				if pass := <-done; pass.Delivered != 0 {
					t.Errorf("the stale process counts %+v", pass)
				}
				s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
				if show(s) != before || len(s.Items[0].Attempts) != 2 || s.Items[0].Attempts[1].Reference.ID != "fresh" {
					t.Errorf("status was %s, is %s", before, show(s))
				}
			})
		}
	})
}

func TestPanicIsAFailedAttempt(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			panic("boom")
		}}
		var log strings.Builder
		svc := service(t, db, f, delivery.WithRetry(retry.Policy{Retries: retry.None}), logTo(&log), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if i := s.Items[0]; i.Reason != queue.Exhausted || !strings.Contains(i.Attempts[0].Error.Message, "panicked: boom") {
			t.Errorf("status is %s", show(s))
		}
		if !strings.Contains(log.String(), "main_test.go") {
			t.Errorf("the log has no stack: %s", log.String())
		}
	})
}

func TestGoneDisablesTheDestination(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		gone := true
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			if gone {
				return nil, handler.Gone(errors.New("410"))
			}
			return nil, nil
		}}
		svc := service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		send := func() string {
			return must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).ID
		}
		first := send()
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), first)); s.State != queue.Failed {
			t.Errorf("status is %s", show(s))
		}
		d = must[*destination.Destination](t)(acme.Destinations().Get(t.Context(), d.ID))
		if !d.Disabled || !strings.Contains(d.DisabledReason, "410") || d.Version != 2 {
			t.Errorf("destination is %+v", d)
		}
		held := send()
		if pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context())); pass.Attempts != 0 {
			t.Errorf("a disabled destination was attempted: %+v", pass)
		}
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), held)); s.Items[0].Reason != queue.Disabled {
			t.Errorf("status is %s", show(s))
		}
		gone = false
		d = must[*destination.Destination](t)(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Disabled: destination.Set(false)}))
		if d.Disabled || d.DisabledReason != "" || d.Health.ConsecutiveFailures != 0 {
			t.Errorf("destination is %+v", d)
		}
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), held)); s.State != queue.Completed {
			t.Errorf("status is %s", show(s))
		}
	})
}

// What cannot be decoded any more is a dead letter, and does not stop what is beside it.
func TestUndecodableIsDead(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		send := func(n int) string {
			return must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{
				Payload: payload.Bytes("x", make([]byte, n)), Metadata: map[string]string{"a": "b"},
			})).ID
		}
		metadata, lost, chunk, inline, good := send(1), send(1), send(100_000), send(10), send(1)
		execSQL(t, db, `update delivery_deliveries set metadata = '[1]' where id = '`+metadata+`'`)
		execSQL(t, db, `delete from delivery_deliveries where id = '`+lost+`'`)
		execSQL(t, db, `delete from delivery_payload_chunks`)
		execSQL(t, db, `update delivery_deliveries set payload = `+map[bool]string{true: `x'00'`, false: `'\x00'`}[isSQLite(db)]+` where id = '`+inline+`'`)
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		for _, id := range []string{metadata, chunk, inline} {
			s, err := acme.Status(t.Context(), id)
			if err != nil || s.Items[0].Reason != queue.Undecodable || s.Items[0].State != queue.Dead {
				t.Errorf("%v, %v", s, err)
			}
		}
		var reason int
		if err := db.QueryRowContext(t.Context(), `select reason from delivery_attempts where delivery_id = '`+lost+`'`).Scan(&reason); err != nil || reason != int(queue.Undecodable) {
			t.Errorf("without its delivery an item has reason %d, %v", reason, err)
		}
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), good)); s.State != queue.Completed {
			t.Errorf("status is %s", show(s))
		}
	})
}

// A destination can be deleted while an attempt at it is under way: the attempt goes on, its item is not retried.
func TestDeleteDuringAnAttempt(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		var acme *delivery.Org
		f := &fake{deliver: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			if err := acme.Destinations().Delete(ctx, r.Destination.ID, destination.CancelPending); err != nil {
				t.Error(err)
			}
			return nil, errors.New("try again")
		}}
		svc := service(t, db, f, c.option())
		acme = svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		must[delivery.Pass](t)(svc.ProcessDue(within(t, 20*time.Second)))
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if i := s.Items[0]; i.State != queue.Cancelled || i.Reason != queue.DestinationGone || len(i.Attempts) != 2 || i.Attempts[0].Error.Message != "try again" {
			t.Errorf("status is %s", show(s))
		}
	})
}

// An item that found its destination just before that was deleted does not wait for ever.
func TestItemsOfADeletedDestinationEnd(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{})
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		execSQL(t, db, `update delivery_destinations set deleted_at = created_at, version = version + 1, config = '{}', sealed = null where id = '`+d.ID+`'`)
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if s.State != queue.AllCancelled || s.Items[0].Reason != queue.DestinationGone {
			t.Errorf("status is %s", show(s))
		}
	})
}

// A handler that ends its goroutine has made a failed attempt, under the request's own policy.
func TestHandlerThatEndsItsGoroutine(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			runtime.Goexit()
			return nil, nil
		}}
		svc := service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		var ids []string
		for range 3 { // more than there are workers
			ids = append(ids, must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{
				Payload: payload.Bytes("x", nil), Retry: retry.Policy{Retries: retry.None},
			})).ID)
		}
		if pass := must[delivery.Pass](t)(svc.ProcessDue(within(t, 20*time.Second))); pass.Attempts != 3 || pass.Dead != 3 {
			t.Errorf("pass is %+v", pass)
		}
		for _, id := range ids {
			s := must[*delivery.Status](t)(acme.Status(t.Context(), id))
			if i := s.Items[0]; i.Reason != queue.Exhausted || i.Attempts[0].StartedAt.IsZero() {
				t.Errorf("status is %s", show(s))
			}
		}
	})
}

// Attempts are timed by the database's clock, whatever the process's says; and no attempt ends before it began.
func TestTimesAreOrdered(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{})
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		a := s.Items[0].Attempts[0]
		if s.CreatedAt.After(a.StartedAt) || a.StartedAt.After(a.EndedAt) || a.StartedAt.Location() != time.UTC {
			t.Errorf("created %s, started %s, ended %s", s.CreatedAt, a.StartedAt, a.EndedAt)
		}
	})
}

// With more destinations than there is room for, claims go on where the last one ended.
func TestDestinationsTakeTurns(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f, delivery.WithWorkers(1)) // two items a claim
		acme := svc.Org("acme")
		for range 5 {
			create(t, acme, destination.Spec{Default: true})
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), []delivery.Request{
			{Payload: payload.JSON(1)}, {Payload: payload.JSON(2)}, {Payload: payload.JSON(3)}, {Payload: payload.JSON(4)},
		}))
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if f.count() != 20 {
			t.Fatalf("%d attempts", f.count())
		}
		for round := range 4 {
			seen := map[string]bool{}
			for _, r := range f.requests[round*5 : round*5+5] {
				seen[r.Destination.ID] = true
			}
			if len(seen) != 5 {
				t.Errorf("round %d reaches %d of 5 destinations", round+1, len(seen))
			}
		}
	})
}

// What waits for a worker is not started after its deadline.
func TestDeadlineWhileWaitingForAWorker(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			c.advance(10 * time.Second)
			return nil, nil
		}}
		svc := service(t, db, f, c.option(), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)}))
		late := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(2), Deadline: c.now().Add(5 * time.Second)}))
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		s := must[*delivery.Status](t)(acme.Status(t.Context(), late.ID))
		if f.count() != 1 || s.Items[0].Reason != queue.DeadlinePassed || s.Items[0].Attempts[0].Number != 0 {
			t.Errorf("%d attempts, status is %s", f.count(), show(s))
		}
	})
}
