package engine

import (
	"context"
	"sync/atomic"
	"time"
)

// room is how much more a pass may claim. The claimer waits for it; workers and the finisher make
// it.
type room struct {
	limit int // jobs that wait for a worker at once
	jobs  *dispatcher
	least int // how much is worth a claim. The claimer's own

	held   atomic.Int64  // jobs that wait for a worker, are with one, or wait for the finisher
	wanted atomic.Int64  // how much the claimer waits for; 0: it does not wait
	freed  chan struct{} // has room for one; wakes the claimer
}

const (
	claimPatience = 5 * time.Millisecond
	maxHeld       = 2 // times the limit: the most that is held at once
)

// left is how many more jobs may be claimed. Running attempts take no room, so that destinations
// which never answer do not make the claims for others small. Neither do unwritten outcomes, until
// there are too many.
func (r *room) left() int {
	waiting, _ := r.jobs.load()
	return min(r.limit-waiting, maxHeld*r.limit-int(r.held.Load()))
}

// wait waits until there is enough room for a large claim. How much is enough is learned, because
// slow attempts can hold much of the room for long. It returns false if ctx ends first.
func (r *room) wait(ctx context.Context) bool {
	defer r.wanted.Store(0)
	var patience *time.Timer
	for {
		r.wanted.Store(int64(max(1, r.least)))
		left := r.left()
		if left >= max(1, r.least) {
			r.least = min(r.limit/2, r.least+r.limit/16+1)
			return true
		}
		if patience == nil {
			patience = time.NewTimer(claimPatience)
			defer patience.Stop()
		}
		select {
		case <-ctx.Done():
			return false
		case <-r.freed:
		case <-patience.C:
			r.least = left / 2
		}
	}
}

// hold takes room for n claimed jobs.
func (r *room) hold(n int) { r.held.Add(int64(n)) }

// give gives back the room of n jobs, and wakes the claimer.
func (r *room) give(n int) {
	r.held.Add(-int64(n))
	r.wake()
}

// offer wakes the claimer if there is as much room as it waits for: an attempt has ended.
func (r *room) offer() {
	if wanted := r.wanted.Load(); wanted > 0 && int64(r.left()) >= wanted && r.wanted.CompareAndSwap(wanted, 0) {
		r.wake()
	}
}

func (r *room) wake() {
	select {
	case r.freed <- struct{}{}:
	default:
	}
}
