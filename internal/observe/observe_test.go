package observe_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/observe"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/payload"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// recorder keeps what an Observer is called with.
type recorder struct {
	mu       sync.Mutex
	accepted []observe.Acceptance
	claimed  []observe.Claim
	attempts []observe.Attempt
	outcomes []observe.Outcome
	finished []observe.Batch
	began    []string // chores
	ended    map[string]error
}

type mark struct{}

func (r *recorder) Accepted(_ context.Context, a observe.Acceptance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accepted = append(r.accepted, a)
}

func (r *recorder) Claimed(_ context.Context, c observe.Claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimed = append(r.claimed, c)
}

func (r *recorder) Attempt(ctx context.Context, a observe.Attempt) (context.Context, func(observe.Outcome)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attempts = append(r.attempts, a)
	return context.WithValue(ctx, mark{}, a.Item), func(o observe.Outcome) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.outcomes = append(r.outcomes, o)
	}
}

func (r *recorder) Finished(_ context.Context, b observe.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finished = append(r.finished, b)
}

func (r *recorder) Chore(ctx context.Context, name string) (context.Context, func(error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began = append(r.began, name)
	return ctx, func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended[name] = err
	}
}

// take returns what was recorded since the last call.
func (r *recorder) take() *recorder {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := &recorder{
		accepted: r.accepted, claimed: r.claimed, attempts: r.attempts, outcomes: r.outcomes,
		finished: r.finished, began: r.began, ended: r.ended,
	}
	r.accepted, r.claimed, r.attempts, r.outcomes, r.finished = nil, nil, nil, nil, nil
	r.began, r.ended = nil, map[string]error{}
	return seen
}

// sum adds up batches, without the time that they took.
func (r *recorder) sum() (all observe.Batch) {
	for _, b := range r.finished {
		all.Delivered += b.Delivered
		all.Retrying += b.Retrying
		all.Dead += b.Dead
		all.Cancelled += b.Cancelled
		all.Released += b.Released
		all.Lost += b.Lost
	}
	return all
}

// claims is how many items were claimed.
func (r *recorder) claims() (n int) {
	for _, c := range r.claimed {
		n += c.Items
	}
	return n
}

// outcomes shows what the attempts came to.
func outcomes(r *recorder) string {
	var all []string
	for _, o := range r.outcomes {
		all = append(all, fmt.Sprint(o.State, " ", o.Reason))
	}
	return strings.Join(all, ", ")
}

func observed(t *testing.T) (*deliverytest.Kit, *recorder) {
	t.Helper()
	r := &recorder{ended: map[string]error{}}
	return deliverytest.New(t, option(r)), r
}

// option is what a package of telemetry makes.
func option(o observe.Observer) delivery.Option {
	return func(b *settings.Builder) error {
		return b.Fix("telemetry", func(f *settings.Fixed) error {
			f.Observer = o
			return nil
		})
	}
}

func deliver(
	t *testing.T, svc *delivery.DeliveryService, organization string, reqs ...delivery.Request,
) []*delivery.Receipt {
	t.Helper()
	receipts, err := svc.Org(organization).DeliverMany(t.Context(), reqs)
	if err != nil {
		t.Fatal(err)
	}
	return receipts
}

func process(t *testing.T, svc *delivery.DeliveryService) {
	t.Helper()
	if _, err := svc.ProcessDue(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestObserverSeesWhatIsAccepted(t *testing.T) {
	t.Parallel()
	kit, r := observed(t)
	kit.Destination("acme")
	kit.Destination("acme")
	req := func(key string) delivery.Request {
		return delivery.Request{Payload: payload.JSON(1), IdempotencyKey: key}
	}
	deliver(t, kit.DeliveryService, "acme", req("a"), req("b"))
	deliver(t, kit.DeliveryService, "acme", req("b"), req("c"))
	receipt, err := kit.Org("acme").Deliver(t.Context(), req("d"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kit.Org("acme").Replay(t.Context(), delivery.Replay{Delivery: receipt.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := kit.Org("nobody").Deliver(t.Context(), req("")); !errors.Is(err, delivery.ErrNoDestinations) {
		t.Fatal(err)
	}
	want := []observe.Acceptance{
		{Organization: "acme", Deliveries: 2, Items: 4},
		{Organization: "acme", Deliveries: 1, Items: 2, Duplicates: 1},
		{Organization: "acme", Deliveries: 1, Items: 2},
		{Organization: "acme", Deliveries: 1, Items: 2},
	}
	if diff := cmp.Diff(want, r.take().accepted); diff != "" {
		t.Error(diff)
	}
}

func TestObserverSeesWhatAHostHasYetToCommit(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("sqlite", dbtest.SQLite(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	r := &recorder{ended: map[string]error{}}
	kit := deliverytest.NewOn(t, db, option(r))
	kit.Destination("acme")
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := kit.Org("acme").DeliverTx(t.Context(), tx, delivery.Request{Payload: payload.JSON(1)}); err != nil {
		t.Fatal(err)
	}
	want := []observe.Acceptance{{Organization: "acme", Deliveries: 1, Items: 1, Uncommitted: true}}
	if diff := cmp.Diff(want, r.take().accepted); diff != "" {
		t.Error(diff)
	}
}

// Calls that share a transaction are reported once for each organization.
func TestObserverSeesSharedTransactions(t *testing.T) {
	t.Parallel()
	kit, r := observed(t)
	organizations := []string{"acme", "other"}
	const each = 20
	var wg sync.WaitGroup
	for _, name := range organizations {
		kit.Destination(name)
		for range each {
			wg.Go(func() {
				if _, err := kit.Org(name).Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	got := map[string]int{}
	for _, a := range r.take().accepted {
		got[a.Organization] += a.Deliveries
		if a.Items != a.Deliveries || a.Duplicates != 0 || a.Uncommitted {
			t.Errorf("accepted %+v", a)
		}
	}
	if want := map[string]int{"acme": each, "other": each}; !cmp.Equal(got, want) {
		t.Errorf("accepted %v, want %v", got, want)
	}
}

func TestObserverSeesAttempts(t *testing.T) {
	t.Parallel()
	kit, r := observed(t)
	failure := errors.New("not today")
	var inside any
	d := kit.Destination("acme", deliverytest.Fail(failure),
		deliverytest.Do(func(ctx context.Context, _ *handler.Request) (*handler.Result, error) {
			inside = ctx.Value(mark{})
			return nil, nil
		}))
	receipt := deliver(t, kit.DeliveryService, "acme", delivery.Request{
		Payload: payload.JSON(1), Topic: "t", TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	})[0]
	process(t, kit.DeliveryService)
	want := observe.Attempt{
		Organization: "acme", Delivery: receipt.ID, Item: receipt.ID + "-1", Destination: d.ID(), Type: "scripted",
		Topic: "t", Number: 1, CreatedAt: kit.Now(), TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
	seen := r.take()
	if diff := cmp.Diff([]observe.Attempt{want}, seen.attempts); diff != "" {
		t.Error(diff)
	}
	if got := outcomes(seen); got != "scheduled backoff" || !errors.Is(seen.outcomes[0].Err, failure) {
		t.Errorf("outcomes %q, %+v", got, seen.outcomes)
	}
	if n, sum := seen.claims(), seen.sum(); n != 1 || sum != (observe.Batch{Retrying: 1}) {
		t.Errorf("%d claimed, finished %+v", n, sum)
	}
	for _, c := range seen.claimed {
		if c.Took <= 0 {
			t.Errorf("claim %+v", c)
		}
	}
	kit.Advance(time.Minute)
	seen = r.take()
	want.Number = 2
	if diff := cmp.Diff([]observe.Attempt{want}, seen.attempts); diff != "" {
		t.Error(diff)
	}
	if got := outcomes(seen); got != "delivered none" || seen.outcomes[0].Err != nil || seen.outcomes[0].Took < 0 {
		t.Errorf("outcomes %q, %+v", got, seen.outcomes)
	}
	if sum := seen.sum(); sum != (observe.Batch{Delivered: 1}) {
		t.Errorf("finished %+v", sum)
	}
	if inside != receipt.ID+"-1" {
		t.Errorf("the handler saw %v in its context", inside)
	}
}

// However an attempt ends, its end is seen; a handler that is not called makes no attempt.
func TestObserverSeesEveryEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		step    deliverytest.Step
		outcome string
		batch   observe.Batch
	}{
		"panic": {deliverytest.Panic("no"), "scheduled backoff", observe.Batch{Retrying: 1}},
		"goexit": {deliverytest.Do(func(context.Context, *handler.Request) (*handler.Result, error) {
			runtime.Goexit()
			return nil, nil
		}), "scheduled backoff", observe.Batch{Retrying: 1}},
		"permanent": {
			deliverytest.Fail(handler.Permanent(errors.New("no"))), "dead permanent failure", observe.Batch{Dead: 1},
		},
		"crash": {deliverytest.Crash(), "", observe.Batch{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kit, r := observed(t)
			kit.Destination("acme", c.step)
			deliver(t, kit.DeliveryService, "acme", delivery.Request{Payload: payload.JSON(1)})
			process(t, kit.DeliveryService)
			seen := r.take()
			if got := outcomes(seen); got != c.outcome || len(seen.attempts) != 1 || seen.sum() != c.batch {
				t.Errorf("%d attempts, outcomes %q, finished %+v", len(seen.attempts), got, seen.sum())
			}
		})
	}
}

// Items that end without their handler are in a batch, and make no attempt.
func TestObserverSeesWhatEndsWithoutAnAttempt(t *testing.T) {
	t.Parallel()
	kit, r := observed(t)
	kit.Destination("acme", deliverytest.Crash(), deliverytest.Crash(), deliverytest.OK())
	deliver(t, kit.DeliveryService, "acme", delivery.Request{Payload: payload.JSON(1)},
		delivery.Request{Payload: payload.JSON(1), Deadline: kit.Now().Add(time.Second)})
	process(t, kit.DeliveryService)
	r.take()
	kit.Advance(time.Minute)
	seen := r.take()
	if sum := seen.sum(); sum != (observe.Batch{Delivered: 1, Dead: 1, Lost: 1}) || len(seen.attempts) != 1 {
		t.Errorf("finished %+v with %d attempts", sum, len(seen.attempts))
	}
}

func TestObserverSeesChores(t *testing.T) {
	t.Parallel()
	kit, r := observed(t)
	if _, err := kit.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := r.take()
	if len(seen.began) < 5 || len(seen.ended) != len(seen.began) {
		t.Errorf("chores began: %v, ended: %v", seen.began, seen.ended)
	}
	for name, err := range seen.ended {
		if err != nil || !slices.Contains(seen.began, name) {
			t.Errorf("chore %q ended with %v", name, err)
		}
	}
	if _, err := kit.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := r.take(); len(again.began) >= len(seen.began) {
		t.Errorf("chores that were not due began again: %v", again.began)
	}
}
