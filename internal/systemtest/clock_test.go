package systemtest_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// A worker whose clock is an hour off does what others do, when others do it, beside one whose
// clock is right. (On SQLite there is no clock but the processes', which are of one machine.)
func TestClockOfAWorkerIsWrong(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]time.Duration{"fast": time.Hour, "slow": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testkit.Open(t, "pgx")
			local := func(s *settings.Builder) error {
				s.Local = func() time.Time { return time.Now().Add(wrong) }
				return nil
			}
			h := &told{seen: map[string]time.Time{}, attempts: map[string]int{}}
			opts := []delivery.Option{testkit.Lease(time.Second), delivery.WithRetry(retry.Policy{First: 50 * time.Millisecond})}
			off := testkit.Service(t, db, h, append(opts, local)...)
			right := testkit.Service(t, db, &testkit.Fake{Do: h.deliver}, opts...)
			acme := off.Org("acme")
			d := testkit.Create(t, acme, destination.Spec{Default: true})
			limited := testkit.Create(t, acme, destination.Spec{Limits: destination.Limits{PerSecond: 50, Burst: 1}})
			testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("to learn the time")})).Must(t)

			start := time.Now()
			later := testkit.Send(t, acme, delivery.Request{NotBefore: start.Add(30 * time.Minute), Topic: "later"})
			soon := testkit.Send(t, acme, delivery.Request{NotBefore: start.Add(300 * time.Millisecond), Topic: "soon"})
			all := []string{soon}
			for range 20 {
				all = append(all,
					testkit.Send(t, acme, delivery.Request{Deadline: start.Add(10 * time.Minute), Topic: "in time"}),
					testkit.Send(t, acme, delivery.Request{Topic: "fails once"}),
					testkit.Send(t, acme, delivery.Request{Destinations: []string{limited.ID}, Topic: "limited"}))
			}
			slow := testkit.Send(t, acme, delivery.Request{Topic: "slow"}) // longer than its lease
			testkit.Run(t, off)
			testkit.Run(t, right)
			for _, id := range append(all, slow) {
				s := testkit.Try(acme.WaitFor(testkit.Within(t, time.Minute), id)).Must(t)
				if s.State != queue.Completed {
					t.Errorf("%s is %s", s.Topic, testkit.Show(s))
				}
				for _, a := range s.Items[0].Attempts {
					if a.Reason == queue.LeaseLost || a.EndedAt.Sub(start).Abs() > 5*time.Minute {
						t.Errorf("%s has the attempt %+v", s.Topic, a)
					}
				}
			}
			if s := testkit.Status(t, acme, later); s.State != queue.Queued {
				t.Errorf("what was to wait is %s", testkit.Show(s))
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.seen["soon"].Before(start.Add(300 * time.Millisecond)) {
				t.Error("it was attempted before its time")
			}
			if now := h.env.Now(); time.Until(now).Abs() > time.Minute {
				t.Errorf("handlers are told that it is %s", now)
			}
			if s := testkit.Try(acme.Destinations().Get(t.Context(), d.ID)).Must(t); s.Disabled {
				t.Error("the destination was disabled")
			}
		})
	}
}

// told fails each item of one topic once, takes its time for another, and notes when it was first
// asked.
type told struct {
	handler.Parser[testkit.Script]
	env      handler.Env
	mu       sync.Mutex
	seen     map[string]time.Time
	attempts map[string]int
}

func (h *told) Open(env handler.Env) error {
	h.env = env
	return nil
}

func (h *told) Deliver(ctx context.Context, r *handler.Request) (*handler.Result, error) {
	return h.deliver(ctx, r)
}

func (h *told) deliver(ctx context.Context, r *handler.Request) (*handler.Result, error) {
	h.mu.Lock()
	if h.seen[r.Topic].IsZero() {
		h.seen[r.Topic] = time.Now()
	}
	h.attempts[r.ItemID]++
	first := h.attempts[r.ItemID] == 1
	h.mu.Unlock()
	switch {
	case r.Topic == "fails once" && first:
		return nil, handler.Fail(handler.Remote, context.DeadlineExceeded)
	case r.Topic == "slow":
		select {
		case <-time.After(2500 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, nil
}
