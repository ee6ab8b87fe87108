package systemtest_test

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
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestDeliverToDefaults(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Label: "SIEM", Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{
			Topic: "audit.login", Payload: payload.JSON(map[string]int{"a": 1}), Metadata: map[string]string{"k": "v"},
		})).Must(t)
		pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if pass.Attempts != 1 || pass.Delivered != 1 || !pass.Next.IsZero() {
			t.Errorf("pass is %+v", pass)
		}
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if s.State != queue.Completed || len(s.Items) != 1 || s.Items[0].Destination != d.ID || s.Items[0].Label != "SIEM" {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if len(f.Requests) != 1 {
			t.Fatalf("%d requests", len(f.Requests))
		}
		r := f.Requests[0]
		if r.Organization != "acme" || r.Topic != "audit.login" || r.Metadata["k"] != "v" || r.Attempt != 1 ||
			r.Config.(testkit.Script).Token.Reveal() != "s3cret" || f.Contents[0] != `{"a":1}` || r.ItemID != receipt.Items[0].ID {
			t.Errorf("request is %+v, content %q", r, f.Contents[0])
		}
	})
}

func TestOneFailingDestinationDoesNotTouchTheOthers(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var bad string
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Destination.ID == bad {
				return nil, handler.Permanent(errors.New("never"))
			}
			return &handler.Result{Reference: handler.Reference{ID: "theirs"}}, nil
		}}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		good := testkit.Create(t, acme, destination.Spec{})
		bad = testkit.Create(t, acme, destination.Spec{}).ID
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{
			Payload: payload.Bytes("a.txt", []byte("x")), Destinations: []string{bad, good.ID, bad},
		})).Must(t)
		if len(receipt.Items) != 2 || receipt.Items[0].Destination != bad || receipt.Items[1].Destination != good.ID {
			t.Fatalf("receipt is %+v", receipt)
		}
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if s.State != queue.PartiallyFailed || s.Items[0].Reason != queue.Permanent || s.Items[1].Reference.ID != "theirs" {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if h := testkit.Try(acme.Destinations().Get(t.Context(), bad)).Must(t).Health; h.ConsecutiveFailures != 1 ||
			h.FailingSince.IsZero() || h.LastFailure.IsZero() {
			t.Errorf("health is %+v", h)
		}
	})
}

func TestRetryUntilExhausted(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, errors.New("no luck")
		}}
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{Retries: 2, Jitter: -1}))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		start := c.Now()
		for i, wait := range []time.Duration{time.Second, 2 * time.Second, 0} {
			pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t)
			if pass.Attempts != 1 || wait > 0 && !pass.Next.Equal(c.Now().Add(wait)) {
				t.Fatalf("pass %d at %s is %+v", i+1, c.Now(), pass)
			}
			c.Advance(wait)
		}
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		i := s.Items[0]
		if s.State != queue.Failed || i.State != queue.Dead || i.Reason != queue.Exhausted || len(i.Attempts) != 3 {
			t.Fatalf("status is %s", testkit.Show(s))
		}
		a := i.Attempts[1]
		if a.Number != 2 || a.Error.Message != "no luck" || !a.StartedAt.Equal(start.Add(time.Second)) || !a.NextAttempt.Equal(start.Add(3*time.Second)) {
			t.Errorf("second attempt is %+v", a)
		}
		if h := testkit.Try(acme.Destinations().Get(t.Context(), d.ID)).Must(t).Health; h.ConsecutiveFailures != 3 {
			t.Errorf("health is %+v", h)
		}
	})
}

func TestSuccessEndsTheCountOfFailures(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f, fail := testkit.Outage()
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		fail.Store(false)
		c.Advance(time.Minute)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t); s.State != queue.Completed || len(s.Items[0].Attempts) != 2 {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if h := testkit.Try(acme.Destinations().Get(t.Context(), d.ID)).Must(t).Health; h.ConsecutiveFailures != 0 || !h.FailingSince.IsZero() {
			t.Errorf("health is %+v", h)
		}
	})
}

func TestPriorityNotBeforeDeadline(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		send := func(topic string, r delivery.Request) string {
			r.Topic, r.Payload = topic, payload.Bytes("x", nil)
			return testkit.Try(acme.Deliver(t.Context(), r)).Must(t).ID
		}
		send("low", delivery.Request{Priority: delivery.Low})
		send("normal", delivery.Request{})
		send("highest", delivery.Request{Priority: delivery.Highest})
		later := send("later", delivery.Request{NotBefore: c.Now().Add(time.Hour)})
		send("in time", delivery.Request{Deadline: c.Now().Add(time.Hour)})
		dead := send("dead", delivery.Request{NotBefore: c.Now().Add(30 * time.Minute), Deadline: c.Now().Add(40 * time.Minute)})
		pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if got, want := strings.Join(f.Topics(), " "), "highest normal in time low"; got != want {
			t.Errorf("order is %q, want %q", got, want)
		}
		if !pass.Next.Equal(c.Now().Add(30 * time.Minute)) {
			t.Errorf("next is %s", pass.Next)
		}
		if s := testkit.Try(acme.Status(t.Context(), later)).Must(t); s.State != queue.Queued || s.Items[0].Reason != queue.NotBefore ||
			!s.Items[0].NextAttempt.Equal(c.Now().Add(time.Hour)) {
			t.Errorf("status is %s", testkit.Show(s))
		}
		c.Advance(time.Hour)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if got := f.Topics(); len(got) != 5 || got[4] != "later" {
			t.Errorf("delivered %q", got)
		}
		if s := testkit.Try(acme.Status(t.Context(), dead)).Must(t); s.State != queue.Failed || s.Items[0].Reason != queue.DeadlinePassed {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

func TestCancel(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		if err := svc.Org("other").Cancel(t.Context(), receipt.ID); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("another organization gets %v", err)
		}
		if err := acme.Cancel(t.Context(), receipt.ID); err != nil {
			t.Fatal(err)
		}
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if s.State != queue.AllCancelled || len(s.Items) != 2 || s.Items[1].Reason != queue.Requested || f.Count() != 0 {
			t.Errorf("status is %s after %d attempts", testkit.Show(s), f.Count())
		}
		if err := acme.Cancel(t.Context(), receipt.ID); !errors.Is(err, delivery.ErrEnded) {
			t.Errorf("a second time: %v", err)
		}
	})
}

func TestCancelInFlight(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		began := make(chan struct{})
		f := &testkit.Fake{Do: func(ctx context.Context, _ *handler.Request) (*handler.Result, error) {
			close(began)
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		svc := testkit.Service(t, db, f, testkit.Lease(300*time.Millisecond))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		testkit.Run(t, svc)
		<-began
		if err := acme.Cancel(t.Context(), receipt.ID); err != nil {
			t.Fatal(err)
		}
		s := testkit.Try(acme.WaitFor(testkit.Within(t, 20*time.Second), receipt.ID)).Must(t)
		if s.State != queue.AllCancelled || f.Count() != 1 {
			t.Errorf("status is %s after %d attempts", testkit.Show(s), f.Count())
		}
	})
}

func TestWaitForSeesWhatAnotherProcessDoes(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		sender, err := delivery.New(db)
		if err != nil {
			t.Fatal(err)
		}
		worker := testkit.Service(t, db, &testkit.Fake{})
		testkit.Create(t, worker.Org("acme"), destination.Spec{Default: true})
		receipt := testkit.Try(sender.Org("acme").Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		if pass := testkit.Try(sender.ProcessDue(t.Context())).Must(t); pass.Attempts != 0 {
			t.Errorf("a process without the handler made %d attempts", pass.Attempts)
		}
		testkit.Run(t, worker)
		s := testkit.Try(sender.Org("acme").WaitFor(testkit.Within(t, 20*time.Second), receipt.ID)).Must(t)
		if s.State != queue.Completed {
			t.Errorf("status is %s", testkit.Show(s))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := sender.Org("acme").WaitFor(ctx, receipt.ID); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}

func TestProcessesShareTheWork(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		const items, processes = 500, 4
		var mu sync.Mutex
		seen := map[string]int{}
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			mu.Lock()
			defer mu.Unlock()
			seen[r.ItemID]++
			return nil, nil
		}}
		var services []*delivery.DeliveryService
		for range processes {
			services = append(services, testkit.Service(t, db, f, delivery.WithWorkers(8)))
		}
		acme := services[0].Org("acme")
		for range 7 {
			testkit.Create(t, acme, destination.Spec{Default: true})
		}
		reqs := make([]delivery.Request, items/7)
		for i := range reqs {
			reqs[i].Payload = payload.JSON(i)
		}
		testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t)
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
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var began, wait sync.WaitGroup
		began.Add(1)
		wait.Add(1)
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			began.Done()
			wait.Wait()
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		first := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		second := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
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
		if s := testkit.Try(acme.Status(t.Context(), first.ID)).Must(t); s.State != queue.Completed {
			t.Errorf("what was in flight is %s", testkit.Show(s))
		}
		if s := testkit.Try(acme.Status(t.Context(), second.ID)).Must(t); s.State != queue.Queued || s.Items[0].State != queue.Ready ||
			len(s.Items[0].Attempts) != 0 {
			t.Errorf("what waited is %s", testkit.Show(s))
		}
	})
}

func TestShutdownReleasesWhatIsNotDone(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		began := make(chan struct{}, 1)
		f := &testkit.Fake{Do: func(ctx context.Context, _ *handler.Request) (*handler.Result, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		svc := testkit.Service(t, db, f, delivery.WithShutdownTimeout(0))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-began
			cancel()
		}()
		if err := svc.Run(ctx); err != nil {
			t.Fatal(err)
		}
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if i := s.Items[0]; i.State != queue.Ready || len(i.Attempts) != 1 || i.Attempts[0].Number != 0 || i.Attempts[0].Reason != queue.Released {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if h := testkit.Try(acme.Destinations().Get(t.Context(), d.ID)).Must(t).Health; h.ConsecutiveFailures != 0 {
			t.Errorf("our shutdown is held against the destination: %+v", h)
		}
	})
}

func TestLostLeases(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		claim := func() { // as a process that dies right after its claim
			t.Helper()
			testkit.LeaseItems(t, db, c.Now().Add(30*time.Second), 0, `state = 0`)
		}
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		for i := range 3 {
			claim()
			if pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t); pass.Attempts != 0 {
				t.Fatalf("a leased item was attempted: %+v", pass)
			}
			c.Advance(31 * time.Second)
			if i < 2 {
				testkit.SweepOnly(t, db, c)
			}
		}
		if pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t); pass.Dead != 1 || pass.Attempts != 0 {
			t.Errorf("pass is %+v", pass)
		}
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		i := s.Items[0]
		if i.State != queue.Dead || i.Reason != queue.Poison || len(i.Attempts) != 3 || i.Attempts[0].Reason != queue.LeaseLost ||
			i.Attempts[0].Number != 0 || f.Count() != 0 {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// A worker that was stopped and wakes after its lease has ended must not overwrite what became of
// the item meanwhile, whether that has ended or waits for a retry.
func TestStaleWorkerOverwritesNothing(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		for name, meanwhile := range map[string]error{"delivered": nil, "failed": errors.New("fresh")} {
			t.Run(name, func(t *testing.T) {
				c := testkit.NewClock()
				began, wake := make(chan struct{}), make(chan struct{})
				stale := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
					close(began)
					<-wake
					return &handler.Result{Reference: handler.Reference{ID: "stale"}}, nil
				}}
				fresh := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
					return &handler.Result{Reference: handler.Reference{ID: "fresh"}}, meanwhile
				}}
				old, other := testkit.Service(t, db, stale, c.Option()), testkit.Service(t, db, fresh, c.Option())
				acme := old.Org("acme " + name)
				testkit.Create(t, acme, destination.Spec{Default: true})
				receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
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
				c.Advance(time.Minute)
				if pass := testkit.Try(other.ProcessDue(t.Context())).Must(t); pass.Attempts != 1 {
					t.Errorf("the other process did %+v", pass)
				}
				before := testkit.Show(testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t))
				close(wake)
				if pass := <-done; pass.Delivered != 0 {
					t.Errorf("the stale process counts %+v", pass)
				}
				s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
				if testkit.Show(s) != before || len(s.Items[0].Attempts) != 2 || s.Items[0].Attempts[1].Reference.ID != "fresh" {
					t.Errorf("status was %s, is %s", before, testkit.Show(s))
				}
			})
		}
	})
}

func TestPanicIsAFailedAttempt(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			panic("boom")
		}}
		var log strings.Builder
		svc := testkit.Service(t, db, f, delivery.WithRetry(retry.Policy{Retries: retry.None}), testkit.LogTo(&log), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if i := s.Items[0]; i.Reason != queue.Exhausted || !strings.Contains(i.Attempts[0].Error.Message, "panicked: boom") {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if !strings.Contains(log.String(), "delivery_test.go") {
			t.Errorf("the log has no stack: %s", log.String())
		}
	})
}

func TestGoneDisablesTheDestination(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		gone := true
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			if gone {
				return nil, handler.Gone(errors.New("410"))
			}
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		send := func() string {
			return testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t).ID
		}
		first := send()
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if s := testkit.Try(acme.Status(t.Context(), first)).Must(t); s.State != queue.Failed {
			t.Errorf("status is %s", testkit.Show(s))
		}
		d = testkit.Try(acme.Destinations().Get(t.Context(), d.ID)).Must(t)
		if !d.Disabled || !strings.Contains(d.DisabledReason, "410") || d.Version != 2 {
			t.Errorf("destination is %+v", d)
		}
		held := send()
		if pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t); pass.Attempts != 0 {
			t.Errorf("a disabled destination was attempted: %+v", pass)
		}
		if s := testkit.Try(acme.Status(t.Context(), held)).Must(t); s.Items[0].Reason != queue.Disabled {
			t.Errorf("status is %s", testkit.Show(s))
		}
		gone = false
		d = testkit.Try(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Disabled: destination.Set(false)})).Must(t)
		if d.Disabled || d.DisabledReason != "" || d.Health.ConsecutiveFailures != 0 {
			t.Errorf("destination is %+v", d)
		}
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if s := testkit.Try(acme.Status(t.Context(), held)).Must(t); s.State != queue.Completed {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// What cannot be decoded any more is a dead letter, and does not stop what is beside it.
func TestUndecodableIsDead(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		send := func(n int) string {
			return testkit.Try(acme.Deliver(t.Context(), delivery.Request{
				Payload: payload.Bytes("x", make([]byte, n)), Metadata: map[string]string{"a": "b"},
			})).Must(t).ID
		}
		metadata, lost, chunk, inline, good := send(1), send(1), send(100_000), send(10), send(1)
		testkit.Exec(t, db, `update delivery_deliveries set metadata = '[1]' where id = '`+metadata+`'`)
		testkit.Exec(t, db, `delete from delivery_deliveries where id = '`+lost+`'`)
		testkit.Exec(t, db, `delete from delivery_payload_chunks`)
		testkit.Exec(t, db, `update delivery_deliveries set payload = `+map[bool]string{true: `x'00'`, false: `'\x00'`}[testkit.IsSQLite(db)]+` where id = '`+inline+`'`)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
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
		if s := testkit.Try(acme.Status(t.Context(), good)).Must(t); s.State != queue.Completed {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// A destination can be deleted while an attempt at it is under way: the attempt goes on, its item
// is not retried.
func TestDeleteDuringAnAttempt(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		var acme *delivery.Org
		f := &testkit.Fake{Do: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			if err := acme.Destinations().Delete(ctx, r.Destination.ID, destination.CancelPending); err != nil {
				t.Error(err)
			}
			return nil, errors.New("try again")
		}}
		svc := testkit.Service(t, db, f, c.Option())
		acme = svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		testkit.Try(svc.ProcessDue(testkit.Within(t, 20*time.Second))).Must(t)
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if i := s.Items[0]; i.State != queue.Cancelled || i.Reason != queue.DestinationGone || len(i.Attempts) != 2 || i.Attempts[0].Error.Message != "try again" {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// An item that found its destination just before that was deleted does not wait for ever.
func TestItemsOfADeletedDestinationEnd(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		testkit.Exec(t, db, `update delivery_destinations set deleted_at = created_at, version = version + 1, config = '{}', sealed = null where id = '`+d.ID+`'`)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if s.State != queue.AllCancelled || s.Items[0].Reason != queue.DestinationGone {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// A handler that ends its goroutine has made a failed attempt, under the request's own policy.
func TestHandlerThatEndsItsGoroutine(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			runtime.Goexit()
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		var ids []string
		for range 3 { // more than there are workers
			ids = append(ids, testkit.Try(acme.Deliver(t.Context(), delivery.Request{
				Payload: payload.Bytes("x", nil), Retry: retry.Policy{Retries: retry.None},
			})).Must(t).ID)
		}
		if pass := testkit.Try(svc.ProcessDue(testkit.Within(t, 20*time.Second))).Must(t); pass.Attempts != 3 || pass.Dead != 3 {
			t.Errorf("pass is %+v", pass)
		}
		for _, id := range ids {
			s := testkit.Try(acme.Status(t.Context(), id)).Must(t)
			if i := s.Items[0]; i.Reason != queue.Exhausted || i.Attempts[0].StartedAt.IsZero() {
				t.Errorf("status is %s", testkit.Show(s))
			}
		}
	})
}

// Attempts are timed by the database's clock, whatever the process's says; and no attempt ends
// before it began.
func TestTimesAreOrdered(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)})).Must(t)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		a := s.Items[0].Attempts[0]
		if s.CreatedAt.After(a.StartedAt) || a.StartedAt.After(a.EndedAt) || a.StartedAt.Location() != time.UTC {
			t.Errorf("created %s, started %s, ended %s", s.CreatedAt, a.StartedAt, a.EndedAt)
		}
	})
}

// With more destinations than there is room for, claims go on where the last one ended.
func TestDestinationsTakeTurns(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, delivery.WithWorkers(1)) // two items a claim
		acme := svc.Org("acme")
		for range 5 {
			testkit.Create(t, acme, destination.Spec{Default: true})
		}
		testkit.Try(acme.DeliverMany(t.Context(), []delivery.Request{
			{Payload: payload.JSON(1)}, {Payload: payload.JSON(2)}, {Payload: payload.JSON(3)}, {Payload: payload.JSON(4)},
		})).Must(t)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if f.Count() != 20 {
			t.Fatalf("%d attempts", f.Count())
		}
		for round := range 4 {
			seen := map[string]bool{}
			for _, r := range f.Requests[round*5 : round*5+5] {
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
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			c.Advance(10 * time.Second)
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t)
		late := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(2), Deadline: c.Now().Add(5 * time.Second)})).Must(t)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		s := testkit.Try(acme.Status(t.Context(), late.ID)).Must(t)
		if f.Count() != 1 || s.Items[0].Reason != queue.DeadlinePassed || s.Items[0].Attempts[0].Number != 0 {
			t.Errorf("%d attempts, status is %s", f.Count(), testkit.Show(s))
		}
	})
}
