package engine

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// pipeline is one running pass: a claimer, workers that come as they are needed, a finisher that writes outcomes in the
// batches that accumulate while the last is committed, and a heartbeat for the leases.
type pipeline struct {
	e      *Engine
	limit  int // items that wait for a worker at once
	counts Counts

	// The claimer's own.
	least  int       // room for which it waits
	gateAt time.Time // when a rate lets more through

	base     context.Context //nolint:containedctx // of attempts: not the host's, which ends before they do
	held     atomic.Int64    // items that wait for a worker, are with one, or wait for the finisher
	served   atomic.Int64    // in all
	wanted   atomic.Int64    // the room that the claimer waits for; 0: none
	freed    chan struct{}   // has room for one; sent to when items are finished, or there is the room that is wanted
	jobs     *dispatcher
	done     chan *job
	stopping atomic.Bool // items that wait for a worker are released instead

	mu      sync.Mutex
	workers int
	flights map[*job]struct{}
	growth  *time.Timer // nil while no more workers are considered

	work, finish, beat sync.WaitGroup
	stopBeat           chan struct{} // of the heartbeat and the statistics
}

// job is a claimed item with all that an attempt needs, and what became of it.
type job struct {
	sqlstore.Claimed
	lease       *lease           // nil once its item is no longer under it. Under the pipeline's lock
	policy      *settings.Policy // in force when it was claimed
	destination *target
	ailing      bool // the destination, as the claim saw it
	ordered     bool // the next of its destination waits for the outcome
	outcome     sqlstore.Outcome
	progress    atomic.Int64 // bytes that the other side has
	noted       int64        // of them, by the heartbeat

	// Under the pipeline's lock.
	cancel context.CancelCauseFunc // nil before its attempt starts
	cause  error                   // why to end it, noted before it starts
	giveUp time.Time               // when it is to lose its lease
}

// lease is that of the items of one claim, which a heartbeat prolongs as one.
type lease struct {
	id      int64
	claimed time.Time

	// Under the pipeline's lock.
	left int  // items that are under it
	lost bool // it is left to run out, as some of them will not be finished
}

// newLease returns a number that no other process takes.
func newLease() int64 { return 1 + rand.Int64N(math.MaxInt64) }

func (e *Engine) newPipeline(ctx context.Context) *pipeline {
	limit := 2 * e.Workers
	p := &pipeline{
		e: e, limit: limit, base: context.WithoutCancel(ctx), freed: make(chan struct{}, 1), least: limit / 2,
		jobs: newDispatcher(e.Workers), done: make(chan *job, maxHeld*limit),
		flights: map[*job]struct{}{}, stopBeat: make(chan struct{}),
	}
	p.finish.Go(p.finisher)
	p.beat.Go(p.heartbeat)
	p.beat.Go(p.statistics)
	return p
}

// claim fills the room there is, and returns how many items and destinations to load it found, and whether there are lanes that
// it did not look at. It waits until there is room for a large claim; how large is learned, because slow attempts can hold
// much of the room for long.
func (p *pipeline) claim(ctx context.Context, exact bool) (n int, more bool, err error) {
	if !p.waitForRoom(ctx) {
		return 0, false, nil
	}
	got, err := p.e.claim(ctx, p.room(), p.jobs.waits, exact)
	if err != nil {
		return 0, false, err
	}
	p.gateAt = time.Time{}
	if got.wait > 0 {
		p.gateAt = p.e.Now().Add(got.wait)
	}
	p.start(got.jobs)
	if len(got.unknown) > 0 {
		err = p.e.load(ctx, got.unknown)
	}
	return len(got.jobs) + len(got.unknown), got.more, err
}

const (
	claimPatience = 5 * time.Millisecond
	maxHeld       = 2 // times the limit, with what is running and what the finisher has not written yet
)

// room is how many more items may be claimed. What runs takes none, so that destinations which never answer do not make
// claims for others small, nor does what waits to be written, as long as it is not too much.
func (p *pipeline) room() int {
	waiting, _ := p.jobs.load()
	return min(p.limit-waiting, maxHeld*p.limit-int(p.held.Load()))
}

// waitForRoom returns false if ctx ended first.
func (p *pipeline) waitForRoom(ctx context.Context) bool {
	defer p.wanted.Store(0)
	var patience *time.Timer
	for {
		p.wanted.Store(int64(max(1, p.least)))
		room := p.room()
		if room >= max(1, p.least) {
			p.least = min(p.limit/2, p.least+p.limit/16+1)
			return true
		}
		if patience == nil {
			patience = time.NewTimer(claimPatience)
			defer patience.Stop()
		}
		select {
		case <-ctx.Done():
			return false
		case <-p.freed:
		case <-patience.C:
			p.least = room / 2
		}
	}
}

// free tells the claimer that there is room.
func (p *pipeline) free() {
	select {
	case p.freed <- struct{}{}:
	default:
	}
}

// start hands jobs to workers.
func (p *pipeline) start(jobs []job) {
	if len(jobs) == 0 {
		return
	}
	p.held.Add(int64(len(jobs)))
	p.mu.Lock()
	for i := range jobs {
		p.flights[&jobs[i]] = struct{}{}
	}
	p.mu.Unlock()
	p.jobs.put(jobs)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.grow(max(atOnce, p.workers))
	if p.growth == nil && p.workers < p.e.Workers {
		served := p.served.Load()
		p.growth = time.AfterFunc(growEvery, func() { p.growAgain(served) })
	}
}

// Workers come as jobs wait for them: a few at once, and twice as many every other millisecond as long as those there are
// do not keep up. Where attempts take no time, the few do all the work, and 2,000 stacks stay unused.
const (
	atOnce    = 64
	growEvery = 2 * time.Millisecond
)

// grow starts workers until there are so many, or as many as there is work for. The lock is held.
func (p *pipeline) grow(to int) {
	waiting, running := p.jobs.load()
	for want := min(to, p.e.Workers, waiting+running); p.workers < want; {
		p.workers++
		p.work.Go(p.worker)
	}
}

// growAgain starts more workers where those there are would take longer than a few turns for what waits.
func (p *pipeline) growAgain(servedBefore int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting, _ := p.jobs.load()
	served := p.served.Load()
	if p.stopping.Load() || waiting == 0 {
		p.growth = nil
		return
	}
	if int(served-servedBefore) < waiting/4+1 {
		p.grow(2 * p.workers)
	}
	if p.workers == p.e.Workers {
		p.growth = nil
		return
	}
	p.growth = time.AfterFunc(growEvery, func() { p.growAgain(served) })
}

func (p *pipeline) worker() {
	finished := false
	defer func() {
		if !finished { // a handler called runtime.Goexit: its place is taken over
			p.work.Go(p.worker)
		}
	}()
	for j := p.jobs.take(); j != nil; j = p.jobs.take() {
		p.serve(j)
	}
	finished = true
}

// serve turns a job into an outcome, whatever the handler does.
func (p *pipeline) serve(j *job) {
	done := func(crashed bool) {
		p.jobs.done(j)
		p.served.Add(1)
		if wanted := p.wanted.Load(); wanted > 0 && int64(p.room()) >= wanted && p.wanted.CompareAndSwap(wanted, 0) {
			p.free()
		}
		if crashed {
			p.lose([]*job{j})
			p.forget([]*job{j})
			return
		}
		p.done <- j
	}
	j.release()
	ctx, cancel := context.WithCancelCause(p.base)
	defer cancel(nil)
	p.mu.Lock()
	j.cancel = cancel
	j.giveUp = time.Now().Add(j.policy.Timeout(j.destination.Limits) + p.e.Lease)
	if j.cause != nil {
		cancel(j.cause)
	}
	p.mu.Unlock()
	if p.stopping.Load() || errors.Is(context.Cause(ctx), handler.ErrLeaseLost) {
		done(false)
		return
	}
	p.e.attempt(ctx, j, done)
}

const (
	maxFinished = 2000
	enough      = 200 // outcomes in one transaction, for which the finisher does not wait
	maxLinger   = 5 * time.Millisecond
)

// finisher writes outcomes. What accumulates while one batch is committed is the next; and while others are being attempted,
// it lets as much time pass between two small batches as the last took, so that writing takes half of the time at most.
func (p *pipeline) finisher() {
	batch := make([]*job, 0, min(p.limit, maxFinished))
	var took time.Duration
	for j := range p.done {
		batch = p.collect(append(batch[:0], j), min(took, maxLinger))
		began := time.Now()
		p.write(batch)
		took = time.Since(began)
		p.forget(batch)
	}
}

// collect adds what is done to a batch, and waits for more as long as that may come and nothing in strict order waits.
func (p *pipeline) collect(batch []*job, linger time.Duration) []*job {
	var timer *time.Timer
	ordered := batch[0].ordered
	for len(batch) < maxFinished {
		select {
		case j, ok := <-p.done:
			if !ok {
				return batch
			}
			batch, ordered = append(batch, j), ordered || j.ordered
			continue
		default:
		}
		if waiting, running := p.jobs.load(); ordered || len(batch) >= enough || waiting+running == 0 || p.stopping.Load() {
			break
		}
		if timer == nil {
			timer = time.NewTimer(linger)
			defer timer.Stop()
		}
		select {
		case j, ok := <-p.done:
			if !ok {
				return batch
			}
			batch, ordered = append(batch, j), ordered || j.ordered
		case <-timer.C:
			return batch
		}
	}
	return batch
}

// forget makes room for others: these items are held no more.
func (p *pipeline) forget(batch []*job) {
	p.mu.Lock()
	for _, j := range batch {
		delete(p.flights, j)
		if j.lease != nil {
			j.lease.left--
			j.lease = nil
		}
	}
	p.mu.Unlock()
	p.held.Add(-int64(len(batch)))
	p.free()
}

// lose leaves the leases of items that will not be finished to run out, and with them those of their claims.
func (p *pipeline) lose(batch []*job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range batch {
		if j.lease != nil {
			j.lease.lost = true
		}
	}
}

// last lists the leases that have no items but those of a batch.
func (p *pipeline) last(batch []*job) (leases []int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
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

// write finishes a batch. It tries again while the leases last: what was delivered must not be forgotten for a database
// that is away for a moment.
func (p *pipeline) write(batch []*job) {
	ctx, cancel := context.WithTimeout(p.base, p.e.Lease)
	defer cancel()
	outcomes := make([]*sqlstore.Outcome, len(batch))
	for i, j := range batch {
		outcomes[i] = &j.outcome
	}
	last := p.last(batch)
	var done sqlstore.Finished
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		err := p.e.Store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			if done, err = tx.Finish(ctx, outcomes); err != nil {
				return err
			}
			return tx.Drop(ctx, last)
		}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			for i, o := range outcomes {
				if done.Applied[i] && !o.Silent() { // one transaction: if one is there, all are
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
			p.lose(batch)
			return
		case <-time.After(pause):
		}
	}
	for i, o := range outcomes {
		if done.Applied[i] {
			p.counts.add(o)
		}
	}
	p.e.tally.add(outcomes, done.Applied)
	p.e.report(done.Changes)
	p.e.tell(outcomes)
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

// statistics writes what attempts came to, now and then.
func (p *pipeline) statistics() {
	p.e.present(p.base)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for flushed := time.Now(); ; {
		select {
		case <-p.stopBeat:
			return
		case <-tick.C:
			p.e.present(p.base)
			if time.Since(flushed) >= p.e.tally.pause() {
				p.e.flush(p.base)
				flushed = time.Now()
			}
		}
	}
}

func (p *pipeline) extend(now time.Time) {
	held := map[*lease][]*job{}
	var ids []int64
	progress := map[*job]int64{}
	var stuck []*job
	var keys []sqlstore.Key // of what is stuck
	p.mu.Lock()
	for j := range p.flights {
		l := j.lease
		if l == nil || now.Sub(l.claimed) < p.e.Lease/6 {
			continue
		}
		if !j.giveUp.IsZero() && now.After(j.giveUp) {
			stuck, keys = append(stuck, j), append(keys, j.Key)
			continue
		}
		if held[l] == nil && !l.lost {
			ids = append(ids, l.id)
		}
		held[l] = append(held[l], j)
		if done := j.progress.Load(); done != j.noted {
			progress[j] = done
		}
	}
	p.mu.Unlock()
	if len(held)+len(stuck) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(p.base, p.e.Lease/3)
	defer cancel()
	var prolonged map[int64]bool
	var flagged []sqlstore.Changed
	beat := func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		if prolonged, err = tx.Prolong(ctx, ids, tx.Now.Add(p.e.Lease)); err != nil {
			return err
		}
		if flagged, err = tx.Flagged(ctx, ids); err != nil {
			return err
		}
		for j, done := range progress {
			if err := tx.NoteProgress(ctx, j.Key, done); err != nil {
				return err
			}
		}
		return tx.Abandon(ctx, newLease(), keys)
	}
	var err error
	if len(stuck) == 0 {
		err = p.e.Store.Lease(ctx, beat)
	} else { // which must not be forgotten: the leases that they had are dropped without them
		err = p.e.Store.Write(ctx, beat, nil)
	}
	if err != nil {
		p.e.Logger.WarnContext(ctx, "delivery: leases could not be prolonged", "leases", len(ids), "error", err)
		return
	}
	for j, done := range progress {
		j.noted = done
	}
	reasons := map[sqlstore.Key]queue.Reason{}
	for _, c := range flagged {
		reasons[c.Key] = c.Cancel
	}
	for l, jobs := range held {
		for _, j := range jobs {
			switch reason := reasons[j.Key]; {
			case !prolonged[l.id]:
				p.end(j, handler.ErrLeaseLost)
			case reason != queue.None:
				p.end(j, cancellation{reason})
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range stuck {
		if j.lease != nil {
			j.lease.left--
			j.lease = nil
		}
	}
}

// end ends the attempt at an item, or notes why it shall not begin.
func (p *pipeline) end(j *job, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if j.cause = cause; j.cancel != nil {
		j.cancel(cause)
	}
}

// graceAfterCancel is how long handlers get to notice that their context has ended.
const graceAfterCancel = 5 * time.Second

// drain ends the pass. With release, what waits for a worker goes back to the queue, and what is in flight has the
// shutdown timeout.
func (p *pipeline) drain(release bool) {
	p.mu.Lock()
	p.stopping.Store(release)
	if p.growth != nil {
		p.growth.Stop()
	}
	p.mu.Unlock()
	if release {
		p.work.Go(p.worker) // for what waits, in case all workers are stuck or none was started
	}
	p.jobs.close(release)
	done := make(chan struct{})
	go func() {
		p.work.Wait()
		close(p.done)
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
			"items", p.held.Load())
		for _, running := p.jobs.load(); p.held.Load() > int64(running); _, running = p.jobs.load() {
			<-p.freed // the others' outcomes are still to be written
		}
	}
	close(p.stopBeat)
	p.beat.Wait()
	p.e.flush(p.base)
}

// endAll waits for what is in flight, then ends it.
func (p *pipeline) endAll(done <-chan struct{}) {
	timeout := time.NewTimer(p.e.Policy().ShutdownTimeout)
	defer timeout.Stop()
	select {
	case <-done:
		return
	case <-timeout.C:
	}
	p.mu.Lock()
	for j := range p.flights {
		if j.cause = handler.ErrShutdown; j.cancel != nil {
			j.cancel(handler.ErrShutdown)
		}
	}
	p.mu.Unlock()
	timeout.Reset(graceAfterCancel)
	select {
	case <-done:
	case <-timeout.C:
	}
}
