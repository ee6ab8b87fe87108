package engine

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/queuestore/sqlite"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// addLease adds n jobs under one lease.
func addLease(f *flights, id int64, claimed time.Time, n int) []*job {
	under := &lease{id: id, claimed: claimed, left: n}
	jobs := make([]job, n)
	all := make([]*job, n)
	for i := range jobs {
		jobs[i].lease = under
		all[i] = &jobs[i]
	}
	f.add(jobs)
	return all
}

func newFlights() *flights { return &flights{jobs: map[*job]struct{}{}} }

// A lease is dropped with the last of its items, and never if some of them will not be finished.
func TestLastOfALease(t *testing.T) {
	t.Parallel()
	now := time.Now()
	f := newFlights()
	a, b := addLease(f, 1, now, 3), addLease(f, 2, now, 2)
	if got := f.last(append(a[:2:2], b[0])); got != nil {
		t.Errorf("leases %v end with some of their items", got)
	}
	if got := f.last(append(a[:3:3], b...)); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("leases %v end with all items", got)
	}
	f.remove(a[:1])
	f.remove(a[:1]) // it has left its lease
	f.leave(a[1:2])
	if got := f.last(a[2:]); !slices.Equal(got, []int64{1}) {
		t.Errorf("leases %v end with the last item", got)
	}
	f.lose(b[:1])
	f.remove(b[:1])
	if got := f.last(b); got != nil {
		t.Errorf("lost leases %v are dropped", got)
	}
}

func TestWhatABeatLooksAt(t *testing.T) {
	t.Parallel()
	now := time.Now()
	f := newFlights()
	old := addLease(f, 1, now.Add(-time.Minute), 3)
	lost := addLease(f, 2, now.Add(-time.Minute), 2)
	addLease(f, 3, now, 1) // young
	f.lose(lost[:1])
	f.remove(lost[:1])
	f.begin(old[0], func(error) {}, now.Add(-time.Second))
	f.begin(old[1], func(error) {}, now.Add(time.Second))
	old[1].progress.Store(7)
	b := f.look(now, 10*time.Second)
	if !slices.Equal(b.leases, []int64{1}) {
		t.Errorf("leases %v are prolonged, want 1: 2 is lost, 3 is young", b.leases)
	}
	if !slices.Equal(b.stuck, old[:1]) {
		t.Errorf("%d attempts are stuck", len(b.stuck))
	}
	if held := b.held[lost[1].lease]; !slices.Equal(held, lost[1:]) {
		t.Errorf("%d attempts are held under a lost lease", len(held))
	}
	if held := b.held[old[1].lease]; len(held) != 2 || slices.Contains(held, old[0]) {
		t.Errorf("%d attempts are held", len(held))
	}
	if len(b.progress) != 1 || b.progress[old[1]] != 7 {
		t.Errorf("progress %v", b.progress)
	}
	f.leave(b.stuck)
	if b = f.look(now, 10*time.Second); len(b.stuck) != 0 {
		t.Error("an attempt that has left its lease is still stuck")
	}
}

// A cause that comes before an attempt starts ends it as it starts.
func TestEndBeforeTheBegin(t *testing.T) {
	t.Parallel()
	f := newFlights()
	j := addLease(f, 1, time.Now(), 1)[0]
	cause := errors.New("cancelled")
	f.end(j, cause)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	f.begin(j, cancel, time.Now())
	if got := context.Cause(ctx); !errors.Is(got, cause) {
		t.Errorf("the attempt starts with %v", got)
	}
}

// away is a database that does not answer.
type away struct{ sqlstore.DB }

func (away) BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error) {
	return nil, errors.New("the database is away")
}

func (away) Conn(context.Context) (*sql.Conn, error) { return nil, errors.New("the database is away") }

// counting returns an engine without a database, whose handler counts its calls.
func counting(calls *int) *Engine {
	return engineOn(away{}, 20*time.Millisecond, func() { *calls++ })
}

func engineOn(db sqlstore.DB, lease time.Duration, deliver func()) *Engine {
	b := settings.NewBuilder()
	b.Lease = lease
	b.Logger = slog.New(slog.DiscardHandler)
	b.Types["fake"] = settings.NewType("fake", handler.Func(
		func(context.Context, *handler.Request, struct{}) (*handler.Result, error) {
			deliver()
			return nil, nil
		}))
	return New(b.Build(), queuestore.New(sqlstore.New(db, sqlite.Native{}, nil), sqlite.Native{}), events.NewBus(time.Now))
}

// pass returns a pipeline without goroutines.
func pass(t *testing.T, e *Engine) *pipeline {
	t.Helper()
	p := &pipeline{
		e: e, base: t.Context(), flights: flights{jobs: map[*job]struct{}{}}, jobs: newDispatcher(1), done: make(chan *job, 1),
	}
	p.room = room{limit: 2, jobs: p.jobs, freed: make(chan struct{}, 1)}
	return p
}

// waiting adds a job that waits for a worker.
func waiting(p *pipeline) {
	jobs := []job{{
		Claimed: queuestore.Claimed{Content: &sqlstore.DeliveryRow{}},
		lease:   &lease{id: 1, claimed: time.Now(), left: 1}, policy: p.e.Policy(),
		destination: &target{DestinationRow: &sqlstore.DestinationRow{}, typ: p.e.Types["fake"], config: struct{}{}},
	}}
	p.room.hold(1)
	p.flights.add(jobs)
	p.jobs.put(jobs)
}

// A job whose lease is lost, or which the end of the pass finds waiting, goes back without an
// attempt.
func TestWhatIsReleasedWithoutAnAttempt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(p *pipeline, j *job)
		calls   int
		reason  queue.Reason
	}{
		"nothing":    {func(*pipeline, *job) {}, 1, queue.None},
		"lease lost": {func(p *pipeline, j *job) { p.flights.end(j, handler.ErrLeaseLost) }, 0, queue.Released},
		"stopping":   {func(p *pipeline, _ *job) { p.stopping.Store(true) }, 0, queue.Released},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			p := pass(t, counting(&calls))
			waiting(p)
			j := p.jobs.take()
			c.prepare(p, j)
			p.serve(j)
			if got := <-p.done; got != j || calls != c.calls || j.outcome.Reason != c.reason {
				t.Errorf("%d calls, outcome %s %s", calls, j.outcome.State, j.outcome.Reason)
			}
		})
	}
}

// Outcomes that cannot be written take the leases of their items along.
func TestUnwrittenOutcomesLoseTheirLease(t *testing.T) {
	t.Parallel()
	p := pass(t, counting(new(int)))
	waiting(p)
	j := p.jobs.take()
	p.write([]*job{j})
	if !j.lease.lost {
		t.Error("the lease will be prolonged")
	}
}

// Once a beat is written, attempts that have no point any more end, and stuck ones are not under
// their lease.
func TestWhatABeatDoes(t *testing.T) {
	t.Parallel()
	p := pass(t, counting(new(int)))
	now := time.Now()
	kept := addLease(&p.flights, 1, now, 3)
	p.flights.begin(kept[2], func(error) {}, now.Add(-time.Second))
	kept[0].progress.Store(7)
	lost := addLease(&p.flights, 2, now, 1)
	kept[1].Delivery = "cancelled"
	b := p.flights.look(now, 0)
	b.prolonged = map[int64]bool{1: true}
	b.flagged = []queuestore.Changed{{Key: kept[1].Key, Cancel: queue.Requested}}
	p.apply(b)
	if kept[0].cause != nil || kept[0].noted != 7 || kept[0].lease.left != 2 {
		t.Errorf("an attempt ends with %v, %d bytes are noted, %d items are under its lease",
			kept[0].cause, kept[0].noted, kept[0].lease.left)
	}
	if kept[2].lease != nil {
		t.Error("a stuck attempt is still under its lease")
	}
	if got, want := kept[1].cause, (cancellation{queue.Requested}); !errors.Is(got, want) {
		t.Errorf("a cancelled attempt ends with %v", got)
	}
	if !errors.Is(lost[0].cause, handler.ErrLeaseLost) {
		t.Errorf("an attempt whose lease is lost ends with %v", lost[0].cause)
	}
}

// slow is a database that does not answer, and takes its time for that once it is armed.
type slow struct {
	away
	armed   atomic.Bool
	answers chan struct{}
}

func (s *slow) BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	if s.armed.CompareAndSwap(true, false) {
		<-s.answers
	}
	return s.away.BeginTx(ctx, opts)
}

// A handler that ignores its context does not keep the end of a pass waiting, but outcomes that are
// being written do.
func TestStopLeavesStuckHandlersAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &slow{answers: make(chan struct{})}
		first, end := true, make(chan struct{})
		p := engineOn(db, time.Hour, func() {
			if first {
				first = false
				<-end
				return
			}
			db.armed.Store(true)
		}).newPipeline(t.Context())
		waiting(p)
		p.workers.start()
		synctest.Wait() // the first is stuck
		waiting(p)
		p.workers.start()
		synctest.Wait()
		stopped := make(chan struct{})
		go func() {
			p.stop(true)
			close(stopped)
		}()
		<-time.After(5 * time.Minute)
		select {
		case <-stopped:
			t.Error("the pass ended before an outcome was written")
		default:
		}
		close(db.answers)
		<-stopped
		if held := p.room.held.Load(); held != 1 {
			t.Errorf("%d jobs are held, want the stuck one", held)
		}
		close(end)
		p.finishing.Wait()
	})
}

// The end of a pass finds a worker for jobs that wait, also where there was none.
func TestStopReleasesWhatWaits(t *testing.T) {
	t.Parallel()
	calls := 0
	p := counting(&calls).newPipeline(t.Context())
	waiting(p)
	p.stop(true)
	if len(p.flights.jobs) != 0 || p.room.held.Load() != 0 || calls != 0 {
		t.Errorf("%d jobs are left, %d calls", len(p.flights.jobs), calls)
	}
}
