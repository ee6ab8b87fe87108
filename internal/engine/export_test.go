package engine

import (
	"context"

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
func (j *job) Of() (destination, seq int64) { return sqlstore.DestinationOf(j.Lane), j.Seq }

// NewDispatcher returns one for so many workers.
func NewDispatcher(workers int) Dispatcher { return Dispatcher{newDispatcher(workers)} }

// Put adds n jobs for a destination, numbered from first.
func (d Dispatcher) Put(destination, first int64, n int) {
	jobs := make([]job, n)
	for i := range jobs {
		jobs[i].Lane, jobs[i].Seq = sqlstore.Lane(5, destination), first+int64(i)
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

// Done gives a job back.
func (d Dispatcher) Done(j Job) { d.d.done(j.(*job)) }

// Floors are floors.
type Floors struct{ f floors }

// Raise notes what a claim took.
func (f *Floors) Raise(items []sqlstore.Claimed, open func(no int64) bool) { f.f.raise(items, open) }

// Known lists the lanes that have floors.
func (f *Floors) Known() []int64 { return f.f.known() }

// Seq is the floor of a lane.
func (f *Floors) Seq(lane int64) int64 { return f.f.lanes[lane].seq }

// Claim leases up to limit items, and returns the lease, for a process in which so many of each destination wait already, loads destinations that it
// does not know, and reports whether there are more that it could not look at.
func (e *Engine) Claim(ctx context.Context, limit int, waits func(no int64) (int, bool), exact bool) (items []sqlstore.Claimed, lease int64, more bool, err error) {
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
	_, _, err := e.sweep(ctx, func(*sqlstore.Outcome) {}, true)
	return err
}
