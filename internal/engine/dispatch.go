package engine

import (
	"sync"

	"github.com/deliverykit/delivery/internal/queuestore"
)

// dispatcher hands jobs to workers, one destination after another, and keeps slow destinations from
// taking all workers. How many attempts a destination may have running depends on how many workers
// are free then (dynamic thresholds, Choudhury and Hahne 1998). Alone, a destination gets three
// quarters of the workers; two get three sevenths each, and so on. Each may always have one attempt
// running, so that only as many slow destinations as there are workers can take them all. Fewer
// than 8 workers are not divided.
type dispatcher struct {
	workers int

	mu                     sync.Mutex
	changed                sync.Cond
	queues                 map[int64]*queued // by destination
	ring                   []*queued         // those with waiting jobs
	waiting, running, idle int
	closed, flush          bool
}

// queued are the jobs of one destination.
type queued struct {
	jobs    []*job
	running int
	moved   bool // one was started since the last call of waits
}

// perFree is how many attempts a destination may have running for each worker that is free.
const perFree = 3

// minDivided is how many workers are worth dividing.
const minDivided = 8

func newDispatcher(workers int) *dispatcher {
	d := &dispatcher{workers: workers, queues: map[int64]*queued{}}
	d.changed.L = &d.mu
	return d
}

// put adds jobs, in the order in which they are to be started.
func (d *dispatcher) put(jobs []job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range jobs {
		no := queuestore.DestinationOf(jobs[i].Lane)
		q := d.queues[no]
		if q == nil {
			q = &queued{}
			d.queues[no] = q
		}
		if q.jobs = append(q.jobs, &jobs[i]); len(q.jobs) == 1 {
			d.ring = append(d.ring, q)
		}
	}
	d.waiting += len(jobs)
	for range min(len(jobs), d.idle) {
		d.changed.Signal()
	}
}

// take returns the next job. It blocks while there is none that may be started, and returns nil
// once the dispatcher is closed and no job waits.
func (d *dispatcher) take() *job {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if j := d.next(); j != nil {
			return j
		}
		if d.closed && d.waiting == 0 {
			return nil
		}
		d.idle++
		d.changed.Wait()
		d.idle--
	}
}

// next returns the next job that may be started, nil if there is none. The lock is held.
func (d *dispatcher) next() *job {
	for range len(d.ring) {
		q := d.ring[0]
		d.ring = d.ring[1:]
		if d.over(q) {
			d.ring = append(d.ring, q)
			continue
		}
		j := q.jobs[0]
		q.jobs[0] = nil
		if q.jobs = q.jobs[1:]; len(q.jobs) > 0 {
			d.ring = append(d.ring, q)
		}
		q.moved = true
		q.running++
		d.running++
		d.waiting--
		return j
	}
	return nil
}

// over reports whether a destination has to leave the next worker to others. The lock is held.
func (d *dispatcher) over(q *queued) bool {
	return !d.flush && d.workers >= minDivided && q.running > 0 && q.running+1 > perFree*(d.workers-d.running-1)
}

// done notes that the worker which took a job is free again.
func (d *dispatcher) done(j *job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	no := queuestore.DestinationOf(j.Lane)
	q := d.queues[no]
	q.running--
	d.running--
	if q.running == 0 && len(q.jobs) == 0 {
		delete(d.queues, no)
	}
	if d.waiting > 0 && d.idle > 0 {
		d.changed.Signal() // a job that no worker was free enough for may be started now
	}
}

// close ends the workers once no job waits. With flush, waiting jobs are handed out whatever the
// thresholds.
func (d *dispatcher) close(flush bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed, d.flush = true, flush
	d.changed.Broadcast()
}

// waits returns how many jobs of a destination wait, and whether it is stalled: none was started
// since the last call.
func (d *dispatcher) waits(no int64) (n int, stalled bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.queues[no]
	if q == nil || len(q.jobs) == 0 {
		return 0, false
	}
	stalled = !q.moved
	q.moved = false
	return len(q.jobs), stalled
}

// load returns how many jobs wait and how many are with workers.
func (d *dispatcher) load() (waiting, running int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting, d.running
}
