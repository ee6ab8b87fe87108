// Package engine moves items: it claims what is ready, has handlers attempt it, and records what became of it. It knows
// handlers only through package handler, and the database only through sqlstore.
package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/wiring"
	"github.com/deliverykit/delivery/queue"
)

// Engine may be used by many goroutines at once; passes that overlap share nothing but the claimer.
type Engine struct {
	*wiring.Settings
	Store *sqlstore.Store

	claimer claimer
	targets targets
	wake    chan struct{} // has room for one
	ended   broadcast
}

// New returns an engine that does nothing yet.
func New(s *wiring.Settings, store *sqlstore.Store) *Engine {
	return &Engine{
		Settings: s, Store: store, wake: make(chan struct{}, 1),
		targets: targets{ready: map[int64]*target{}, resting: map[int64]rest{}},
	}
}

// Wake makes a running loop look for items now.
func (e *Engine) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Ended returns a channel that is closed when next an item ends in this process.
func (e *Engine) Ended() <-chan struct{} { return e.ended.next() }

func (e *Engine) tell(outcomes []sqlstore.Outcome) {
	for _, o := range outcomes {
		if o.State.Ended() {
			e.ended.send()
			return
		}
	}
}

// broadcast wakes all who wait.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// Counts are what a pass did.
type Counts struct {
	Attempts, Delivered, Retrying, Dead atomic.Int64
}

func (c *Counts) add(o *sqlstore.Outcome) {
	if o.Took != sqlstore.NotBegun && o.Reason != queue.Released {
		c.Attempts.Add(1)
	}
	switch o.State {
	case queue.Delivered:
		c.Delivered.Add(1)
	case queue.Dead:
		c.Dead.Add(1)
	case queue.Scheduled:
		c.Retrying.Add(1)
	}
}

// Pass works until nothing is due: sweeps, claims and attempts. When ctx ends it stops claiming and drains as Run does,
// and returns ctx's error.
func (e *Engine) Pass(ctx context.Context) (*Counts, error) {
	p := e.newPipeline(ctx)
	err := p.claimUntilIdle(ctx)
	p.drain(ctx.Err() != nil)
	return &p.counts, errors.Join(err, ctx.Err())
}

// Run works until ctx ends, then drains: it starts nothing more, waits for what is in flight up to the shutdown timeout,
// and releases the rest. Whatever it started has ended when it returns, but for handlers that ignore their context.
func (e *Engine) Run(ctx context.Context) {
	p := e.newPipeline(ctx)
	p.claimForever(ctx)
	p.drain(true)
}

// pipeline is one running pass: a claimer, workers that come as they are needed, a finisher that writes outcomes in the
// batches that accumulate while the last is committed, and a heartbeat for the leases.
type pipeline struct {
	e      *Engine
	limit  int // items held at once: in flight, waiting for a worker or for the finisher
	counts Counts

	base     context.Context //nolint:containedctx // of attempts: not the host's, which ends before they do
	held     atomic.Int64
	active   atomic.Int64  // in the hands of a worker
	room     chan struct{} // has room for one; sent to when items are finished
	jobs     chan job
	outcomes chan sqlstore.Outcome
	stopping atomic.Bool // items that wait for a worker are released instead

	mu      sync.Mutex
	workers int
	flights map[sqlstore.Key]*flight

	work, finish, beat sync.WaitGroup
	stopBeat           chan struct{}
}

// flight is an item under lease.
type flight struct {
	cancel  context.CancelCauseFunc // nil before its attempt starts
	claimed time.Time
	cause   error // why to end it, noted before it starts
	giveUp  time.Time
}

func (e *Engine) newPipeline(ctx context.Context) *pipeline {
	limit := 2 * e.Workers
	p := &pipeline{
		e: e, limit: limit, base: context.WithoutCancel(ctx), room: make(chan struct{}, 1),
		jobs: make(chan job, limit), outcomes: make(chan sqlstore.Outcome, limit),
		flights: make(map[sqlstore.Key]*flight, limit), stopBeat: make(chan struct{}),
	}
	p.finish.Go(p.finisher)
	p.beat.Go(p.heartbeat)
	return p
}

// claimUntilIdle claims until nothing is due and nothing is held.
func (p *pipeline) claimUntilIdle(ctx context.Context) error {
	for swept := time.Now(); ctx.Err() == nil; {
		idle := p.held.Load() == 0
		n, err := p.claim(ctx)
		if err != nil {
			return stopped(ctx, err)
		}
		if n > 0 && time.Since(swept) < busyPoll {
			continue
		}
		moved, _, err := p.e.sweep(ctx, p.counts.add)
		swept = time.Now()
		switch {
		case err != nil:
			return stopped(ctx, err)
		case n > 0 || moved > 0:
		case idle:
			return nil
		case p.held.Load() > 0:
			p.wait(ctx, nil)
		}
	}
	return nil
}

// stopped is err, unless it comes of ctx having ended.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the caller reports ctx's own error
	}
	return err
}

const (
	busyPoll   = 100 * time.Millisecond
	errorPause = time.Second
)

// claimForever claims until ctx ends. While there is something to do it looks every 100 ms for what other processes have
// accepted, and more seldom the longer there is not; for what falls due it looks when it does. Errors of the database are
// logged and tried again.
func (p *pipeline) claimForever(ctx context.Context) {
	poll := busyPoll
	var sweepAt, dueAt time.Time
	var failing bool
	for ctx.Err() == nil {
		var n, moved int
		var err error
		if now := time.Now(); !now.Before(sweepAt) || !dueAt.IsZero() && !now.Before(dueAt) {
			var until time.Duration
			moved, until, err = p.e.sweep(ctx, p.counts.add)
			sweepAt, dueAt = time.Now().Add(busyPoll), time.Time{}
			if until > 0 { // else it is due, and held by a worker
				dueAt = time.Now().Add(until)
			}
		}
		if err == nil {
			n, err = p.claim(ctx)
		}
		var pause time.Duration
		switch {
		case err != nil:
			if !failing && ctx.Err() == nil {
				p.e.Logger.ErrorContext(ctx, "delivery: the queue cannot be read; trying again", "error", err)
			}
			failing, pause = true, errorPause
		case n > 0 || moved > 0:
			failing, poll = false, busyPoll
			continue
		default:
			failing, pause = false, poll
			poll = min(poll*5/4, p.e.PollInterval)
			if p.held.Load() > 0 {
				poll = min(busyPoll, p.e.PollInterval)
			}
			if !dueAt.IsZero() {
				pause = min(pause, time.Until(dueAt))
			}
		}
		timer := time.NewTimer(pause)
		p.wait(ctx, timer.C)
		timer.Stop()
	}
}

// wait returns when there may be something to claim, or when ctx has ended.
func (p *pipeline) wait(ctx context.Context, timer <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-p.room:
	case <-p.e.wake:
	case <-timer:
	}
}

// claim fills the room there is, once at least half is free, and returns how many items it claimed or loaded
// destinations for.
func (p *pipeline) claim(ctx context.Context) (int, error) {
	for p.held.Load() > int64(p.limit/2) {
		p.wait(ctx, nil)
		if ctx.Err() != nil {
			return 0, nil //nolint:nilerr // the caller sees it
		}
	}
	jobs, unknown, err := p.e.claim(ctx, p.limit-int(p.held.Load()))
	if err != nil {
		return 0, err
	}
	p.start(jobs)
	if len(unknown) > 0 {
		err = p.e.load(ctx, unknown)
	}
	return len(jobs) + len(unknown), err
}

// start hands jobs to workers, and starts as many as there is work for.
func (p *pipeline) start(jobs []job) {
	if len(jobs) == 0 {
		return
	}
	held := p.held.Add(int64(len(jobs)))
	now := time.Now()
	p.mu.Lock()
	for _, j := range jobs {
		p.flights[j.Key] = &flight{claimed: now}
	}
	for p.workers < p.e.Workers && p.workers < int(held) {
		p.workers++
		p.work.Go(p.worker)
	}
	p.mu.Unlock()
	for _, j := range jobs {
		p.jobs <- j
	}
}

func (p *pipeline) worker() {
	finished := false
	defer func() {
		if !finished { // a handler called runtime.Goexit: its place is taken over
			p.work.Go(p.worker)
		}
	}()
	for j := range p.jobs {
		p.serve(j)
	}
	finished = true
}

// serve turns a job into an outcome, whatever the handler does.
func (p *pipeline) serve(j job) {
	p.active.Add(1)
	done := func(o *sqlstore.Outcome) {
		p.active.Add(-1)
		if o == nil {
			p.forget(j.Key)
			return
		}
		p.outcomes <- *o
	}
	ctx, cancel := context.WithCancelCause(p.base)
	defer cancel(nil)
	p.mu.Lock()
	f := p.flights[j.Key]
	f.cancel = cancel
	f.giveUp = time.Now().Add(p.e.Timeout(j.destination.Limits) + p.e.Lease)
	if f.cause != nil {
		cancel(f.cause)
	}
	p.mu.Unlock()
	if p.stopping.Load() || errors.Is(context.Cause(ctx), handler.ErrLeaseLost) {
		done(newOutcome(j))
		return
	}
	p.e.attempt(ctx, j, done)
}

const mostFinished = 2000

// finisher writes outcomes. What accumulates while one batch is committed is the next.
func (p *pipeline) finisher() {
	batch := make([]sqlstore.Outcome, 0, min(p.limit, mostFinished))
	var keys []sqlstore.Key
	for o := range p.outcomes {
		batch = append(batch[:0], o)
	more:
		for len(batch) < mostFinished {
			select {
			case o, ok := <-p.outcomes:
				if !ok {
					break more
				}
				batch = append(batch, o)
			default:
				break more
			}
		}
		p.write(batch)
		keys = keys[:0]
		for i := range batch {
			keys = append(keys, batch[i].Key)
		}
		p.forget(keys...)
	}
}

// forget makes room for others: these items are held no more.
func (p *pipeline) forget(keys ...sqlstore.Key) {
	p.mu.Lock()
	for _, k := range keys {
		delete(p.flights, k)
	}
	p.mu.Unlock()
	p.held.Add(-int64(len(keys)))
	select {
	case p.room <- struct{}{}:
	default:
	}
}

// write finishes a batch. It tries again while the leases last: what was delivered must not be forgotten for a database
// that is away for a moment.
func (p *pipeline) write(batch []sqlstore.Outcome) {
	ctx, cancel := context.WithTimeout(p.base, p.e.Lease)
	defer cancel()
	var applied []bool
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		err := p.e.Store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			applied, err = tx.Finish(ctx, batch)
			return err
		}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			for i, o := range batch {
				if applied[i] && !o.Silent() { // one transaction: if one is there, all are
					return tx.Recorded(ctx, o.Key)
				}
			}
			return true, nil
		})
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			p.e.Logger.ErrorContext(ctx, "delivery: outcomes could not be recorded; the items will be attempted again",
				"items", len(batch), "error", err)
			return
		case <-time.After(pause):
		}
	}
	for i := range batch {
		if applied[i] {
			p.counts.add(&batch[i])
		}
	}
	p.e.tell(batch)
}

// heartbeat prolongs the leases of what is held, and ends attempts whose lease is lost or whose delivery is cancelled.
func (p *pipeline) heartbeat() {
	tick := time.NewTicker(p.e.Lease / 6)
	defer tick.Stop()
	for {
		select {
		case <-p.stopBeat:
			return
		case now := <-tick.C:
			p.extend(now)
		}
	}
}

func (p *pipeline) extend(now time.Time) {
	var keys []sqlstore.Key
	p.mu.Lock()
	for k, f := range p.flights {
		if now.Sub(f.claimed) >= p.e.Lease/6 && (f.giveUp.IsZero() || now.Before(f.giveUp)) {
			keys = append(keys, k)
		}
	}
	p.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(p.base, p.e.Lease/3)
	defer cancel()
	var held []sqlstore.Changed
	err := p.e.Store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		held, err = p.e.Store.Extend(ctx, tx, keys, tx.Now.Add(p.e.Lease))
		return err
	}, nil)
	if err != nil {
		p.e.Logger.WarnContext(ctx, "delivery: leases could not be prolonged", "items", len(keys), "error", err)
		return
	}
	still := make(map[sqlstore.Key]bool, len(held))
	for _, c := range held {
		still[c.Key] = true
		if c.Cancel != queue.None {
			p.end(c.Key, cancellation{c.Cancel})
		}
	}
	for _, k := range keys {
		if !still[k] {
			p.end(k, handler.ErrLeaseLost)
		}
	}
}

// end ends the attempt at an item, or notes why it shall not begin.
func (p *pipeline) end(k sqlstore.Key, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.flights[k]
	switch {
	case f == nil:
	case f.cancel != nil:
		f.cancel(cause)
	default:
		f.cause = cause
	}
}

// graceAfterCancel is how long handlers get to notice that their context has ended.
const graceAfterCancel = 5 * time.Second

// drain ends the pass. With release, what waits for a worker goes back to the queue, and what is in flight has the
// shutdown timeout.
func (p *pipeline) drain(release bool) {
	if release {
		p.stopping.Store(true)
		p.work.Go(p.worker) // for what waits, in case all workers are stuck
	}
	close(p.jobs)
	done := make(chan struct{})
	go func() {
		p.work.Wait()
		close(p.outcomes)
		p.finish.Wait()
		close(done)
	}()
	if release {
		p.endAll(done)
	} else {
		<-done
	}
	select {
	case <-done:
	default:
		p.e.Logger.Error("delivery: handlers ignore that their context has ended; their items are attempted again when the leases end",
			"items", p.active.Load())
		for p.held.Load() > p.active.Load() { // the others' outcomes are still to be written
			<-p.room
		}
	}
	close(p.stopBeat)
	p.beat.Wait()
}

// endAll waits for what is in flight, then ends it.
func (p *pipeline) endAll(done <-chan struct{}) {
	timeout := time.NewTimer(p.e.ShutdownTimeout)
	defer timeout.Stop()
	select {
	case <-done:
		return
	case <-timeout.C:
	}
	p.mu.Lock()
	for _, f := range p.flights {
		f.cause = handler.ErrShutdown
		if f.cancel != nil {
			f.cancel(handler.ErrShutdown)
		}
	}
	p.mu.Unlock()
	timeout.Reset(graceAfterCancel)
	select {
	case <-done:
	case <-timeout.C:
	}
}
