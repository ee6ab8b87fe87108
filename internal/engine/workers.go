package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/handler"
)

// workers are the goroutines that serve jobs. They come as jobs wait for them: a few at once, then
// twice as many every other millisecond as long as those there are do not keep up. Where attempts
// take no time, the few do all the work, and 2,000 stacks stay unused.
type workers struct {
	limit int
	jobs  *dispatcher
	serve func(*job)

	group  sync.WaitGroup
	served atomic.Int64 // attempts that have ended

	mu     sync.Mutex // the dispatcher's lock is taken under it
	n      int
	growth *time.Timer // nil while no more workers are considered
	closed bool        // no more workers are started
}

const (
	atOnce    = 64
	growEvery = 2 * time.Millisecond
)

// start starts workers for jobs that have been put.
func (w *workers) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.grow(max(atOnce, w.n))
	if w.growth == nil && w.n < w.limit {
		w.growAfter(w.served.Load())
	}
}

// grow starts workers until there are as many as to, or as there is work for. The lock is held.
func (w *workers) grow(to int) {
	waiting, running := w.jobs.load()
	for want := min(to, w.limit, waiting+running); w.n < want; {
		w.n++
		w.group.Go(w.work)
	}
}

// growAfter considers more workers in a moment. The lock is held.
func (w *workers) growAfter(served int64) {
	w.growth = time.AfterFunc(growEvery, func() { w.growAgain(served) })
}

// growAgain starts more workers where those there are would take longer than a few turns for the
// jobs that wait.
func (w *workers) growAgain(servedBefore int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.growth = nil
	waiting, _ := w.jobs.load()
	served := w.served.Load()
	if w.closed || waiting == 0 {
		return
	}
	if int(served-servedBefore) < waiting/4+1 {
		w.grow(2 * w.n)
	}
	if w.n < w.limit {
		w.growAfter(served)
	}
}

// close lets no more workers start by themselves. With one, it starts a last one for the jobs that
// wait, in case all workers are stuck or none was started.
func (w *workers) close(one bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.growth != nil {
		w.growth.Stop()
	}
	if one {
		w.group.Go(w.work)
	}
}

func (w *workers) work() {
	finished := false
	defer func() {
		if !finished { // a handler called runtime.Goexit: another worker takes its place
			w.group.Go(w.work)
		}
	}()
	for j := w.jobs.take(); j != nil; j = w.jobs.take() {
		w.serve(j)
	}
	finished = true
}

// serve turns a job into an outcome, whatever the handler does.
func (p *pipeline) serve(j *job) {
	ctx, cancel := context.WithCancelCause(p.base)
	defer cancel(nil)
	p.flights.begin(j, cancel, time.Now().Add(j.policy.Timeout(j.destination.Limits)+p.e.Lease))
	a := newAttempt(p.e, j)
	defer func() { p.attempted(j, a.end(context.Cause(ctx))) }() // also if the handler ends this goroutine
	if p.stopping.Load() || errors.Is(context.Cause(ctx), handler.ErrLeaseLost) {
		return
	}
	a.run(ctx)
}

// attempted passes a job on to the finisher. One that crashed is forgotten, and its lease runs out.
func (p *pipeline) attempted(j *job, crashed bool) {
	p.jobs.done(j)
	p.workers.served.Add(1)
	p.room.offer()
	if crashed {
		p.flights.lose([]*job{j})
		p.forget([]*job{j})
		return
	}
	p.done <- j
}
