package engine

import (
	"context"
	"math"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// For tests of the rules, which need no database.
var (
	Shares     = shares
	Hungry     = hungry
	Interleave = interleave
	Decide     = decide
)

// Cancelled is the cause of an attempt that is to end cancelled.
func Cancelled(r queue.Reason) error { return cancellation{r} }

// Dispatcher is a dispatcher without the waiting.
type Dispatcher struct{ d *dispatcher }

// Job is what a Dispatcher hands out.
type Job interface {
	Of() (destination, seq int64)
}

// Of identifies a job.
func (j *job) Of() (destination, seq int64) { return queuestore.DestinationOf(j.Lane), j.Seq }

// NewDispatcher returns one for so many workers.
func NewDispatcher(workers int) Dispatcher { return Dispatcher{newDispatcher(workers)} }

// Put adds n jobs for a destination, numbered from first.
func (d Dispatcher) Put(destination, first int64, n int) {
	jobs := make([]job, n)
	for i := range jobs {
		jobs[i].Lane, jobs[i].Seq = queuestore.Lane(5, destination), first+int64(i)
	}
	d.d.put(jobs)
}

// Take returns the next job, nil where none may be started.
func (d Dispatcher) Take() Job {
	if j := d.d.next(); j != nil {
		return j
	}
	return nil
}

// Close closes the dispatcher.
func (d Dispatcher) Close(flush bool) { d.d.close(flush) }

// Done gives a job back.
func (d Dispatcher) Done(j Job) { d.d.done(j.(*job)) }

// Waits returns how many jobs of a destination wait, and whether none was started since the last
// call.
func (d Dispatcher) Waits(destination int64) (n int, stalled bool) { return d.d.waits(destination) }

// Allowance is how many items of a destination may be claimed, of which as many as waiting wait
// already.
func Allowance(limit, lanes, waiting int, stalled bool) int {
	b := newBounds(nil, func(int64) (int, bool) { return waiting, stalled })
	b.begin(limit, lanes)
	return b.allowance(1)
}

// Collect returns how many outcomes one transaction takes of jobs that are done one after another,
// of which some are in strict order. With busy, others are attempted meanwhile; with stopping, the
// pass ends. Where it waits, it waits for ever.
func Collect(ordered []bool, busy, stopping bool) int {
	p := &pipeline{jobs: newDispatcher(8), done: make(chan *job)}
	if busy {
		p.jobs.put(make([]job, 1))
	}
	p.stopping.Store(stopping)
	jobs := make([]*job, len(ordered))
	for i := range jobs {
		jobs[i] = &job{ordered: ordered[i]}
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for _, j := range jobs[1:] {
			select {
			case p.done <- j:
			case <-done:
				return
			}
		}
	}()
	return len(p.collect(jobs[:1:1], math.MaxInt64))
}

// Floors are floors.
type Floors struct{ f floors }

// Raise notes what a claim took.
func (f *Floors) Raise(items []queuestore.Claimed, open func(no int64) bool) { f.f.raise(items, open) }

// Known lists the lanes that have floors.
func (f *Floors) Known() []int64 { return f.f.known() }

// Seq is the floor of a lane.
func (f *Floors) Seq(lane int64) int64 { return f.f.lanes[lane].seq }

// Claim leases up to limit items, and returns the lease. It loads destinations that it does not
// know, and reports whether there are items that it could not look at.
func (e *Engine) Claim(
	ctx context.Context, limit int, waits func(no int64) (int, bool), exact bool,
) (items []queuestore.Claimed, lease int64, more bool, err error) {
	got, err := e.claim(ctx, limit, waits, exact)
	if err != nil {
		return nil, 0, false, err
	}
	for i := range got.jobs {
		items, lease = append(items, got.jobs[i].Claimed), got.jobs[i].lease.id
	}
	if len(got.unknown) > 0 {
		err = e.load(ctx, got.unknown)
	}
	return items, lease, got.more || len(got.unknown) > 0, err
}

// Sweep moves all that is due.
func (e *Engine) Sweep(ctx context.Context) error {
	_, _, err := e.sweep(ctx, func(*queuestore.Outcome) {}, true)
	return err
}

// Unobserved is an attempt of an engine that has no observer.
type Unobserved struct {
	a        *attempt
	outcomes []*queuestore.Outcome
}

// NewUnobserved returns one.
func NewUnobserved() *Unobserved {
	e := &Engine{Settings: settings.NewBuilder().Build()}
	j := &job{Claimed: queuestore.Claimed{Content: &sqlstore.DeliveryRow{}}}
	return &Unobserved{newAttempt(e, j), []*queuestore.Outcome{&j.outcome}}
}

// Observe passes the points of a claim, an attempt and a batch at which an observer would be
// called.
func (u *Unobserved) Observe(ctx context.Context) {
	began := time.Time{}
	u.a.e.observeClaim(ctx, 1, began)
	u.a.observe(ctx)
	u.a.observeEnd(u.outcomes[0])
	u.a.e.observeFinished(ctx, u.outcomes, nil, began)
}
