package engine

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
)

// job is a claimed item, with all that an attempt needs, and its outcome. Until its last group, the
// fields are written by the claimer alone, before the workers see the job.
type job struct {
	queuestore.Claimed
	policy      *settings.Policy // in force when it was claimed
	destination *target
	ailing      bool // the claim saw failures of the destination
	ordered     bool // the next item of the destination waits for this outcome

	outcome  queuestore.Outcome // the worker's until it sends the job to the finisher, then the finisher's
	progress atomic.Int64       // bytes that the other side has
	noted    int64              // of them, written to the database. The heartbeat's own

	// Under the lock of the flights.
	lease  *lease                  // nil once the item is no longer under it
	cancel context.CancelCauseFunc // nil before the attempt starts
	cause  error                   // ends the attempt, also if it comes before the attempt starts
	giveUp time.Time               // when the item leaves its lease; zero before the attempt starts
}

// lease covers the items of one claim. The heartbeat prolongs it as a unit.
type lease struct {
	id      int64
	claimed time.Time

	// Under the lock of the flights.
	left int  // items under it
	lost bool // it is left to run out, because some of its items will not be finished
}

// newLease returns a number that no other process takes.
func newLease() int64 { return 1 + rand.Int64N(math.MaxInt64) }

// flights are the jobs of a pass, from their claim until their outcome is written. Their lock
// guards what the goroutines share of a job and all of its lease. No other lock is taken under it.
type flights struct {
	mu   sync.Mutex
	jobs map[*job]struct{}
}

func (f *flights) add(jobs []job) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range jobs {
		f.jobs[&jobs[i]] = struct{}{}
	}
}

// remove takes jobs out of the flights and out of their leases.
func (f *flights) remove(batch []*job) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range batch {
		delete(f.jobs, j)
		j.leave()
	}
}

// leave takes jobs out of their leases.
func (f *flights) leave(batch []*job) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range batch {
		j.leave()
	}
}

// leave takes a job out of its lease. The lock is held.
func (j *job) leave() {
	if j.lease != nil {
		j.lease.left--
		j.lease = nil
	}
}

// begin notes that the attempt at a job starts. cancel is called at once if a cause to end it has
// come before.
func (f *flights) begin(j *job, cancel context.CancelCauseFunc, giveUp time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j.cancel, j.giveUp = cancel, giveUp
	if j.cause != nil {
		cancel(j.cause)
	}
}

// end ends the attempt at a job, or keeps it from starting.
func (f *flights) end(j *job, cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j.end(cause)
}

// endAll ends the attempts at all jobs.
func (f *flights) endAll(cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for j := range f.jobs {
		j.end(cause)
	}
}

// end ends the attempt. The lock is held.
func (j *job) end(cause error) {
	if j.cause = cause; j.cancel != nil {
		j.cancel(cause)
	}
}

// lose leaves the leases of jobs that will not be finished to run out.
func (f *flights) lose(batch []*job) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range batch {
		if j.lease != nil {
			j.lease.lost = true
		}
	}
}

// last lists the leases that have no items but those of a batch.
func (f *flights) last(batch []*job) (leases []int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of := map[*lease]int{}
	for _, j := range batch {
		if j.lease == nil || j.lease.lost {
			continue
		}
		if of[j.lease]++; of[j.lease] == j.lease.left {
			leases = append(leases, j.lease.id)
		}
	}
	return leases
}
