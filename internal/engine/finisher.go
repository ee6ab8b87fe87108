package engine

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

const (
	maxFinished = 2000
	enough      = 200 // outcomes in one transaction, for which the finisher does not wait
	maxLinger   = 5 * time.Millisecond
)

// finish writes outcomes until the channel of jobs is closed. The outcomes that accumulate while
// one batch is committed are the next batch. While others are attempted, it lets as much time pass
// between two small batches as the last one took, so that it writes for half of the time at most.
func (p *pipeline) finish() {
	batch := make([]*job, 0, min(p.room.limit, maxFinished))
	var took time.Duration
	for j := range p.done {
		batch = p.collect(append(batch[:0], j), min(took, maxLinger))
		began := time.Now()
		p.write(batch)
		took = time.Since(began)
		p.forget(batch)
	}
}

// collect adds finished jobs to a batch. It waits for more as long as more may come and none of the
// batch is in strict order.
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
		waiting, running := p.jobs.load()
		if ordered || len(batch) >= enough || waiting+running == 0 || p.stopping.Load() {
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

// write writes the outcomes of a batch. Those that cannot be written while a lease lasts are lost.
func (p *pipeline) write(batch []*job) {
	ctx, cancel := context.WithTimeout(p.base, p.e.Lease)
	defer cancel()
	outcomes := make([]*queuestore.Outcome, len(batch))
	for i, j := range batch {
		outcomes[i] = &j.outcome
	}
	began := time.Now()
	done, err := p.e.commit(ctx, outcomes, p.flights.last(batch))
	if err != nil {
		p.e.Logger.ErrorContext(ctx, "delivery: outcomes could not be recorded; the items will be attempted again",
			"items", len(batch), "error", err)
		p.flights.lose(batch)
		return
	}
	for i, o := range outcomes {
		if done.Applied[i] {
			p.counts.add(o)
		}
	}
	p.e.tally.add(outcomes, done.Applied)
	p.e.report(done.Changes)
	p.e.observeFinished(ctx, outcomes, done.Applied, began)
	p.e.announce(outcomes)
}

// commit writes outcomes and drops the leases that end with them. It tries again until ctx ends: a
// database that is away for a moment must not make the process forget what was delivered.
func (e *Engine) commit(
	ctx context.Context, outcomes []*queuestore.Outcome, leases []int64,
) (done queuestore.Finished, err error) {
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		err = e.Store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			if done, err = e.Store.Finish(ctx, tx, outcomes); err != nil {
				return err
			}
			return queuestore.Drop(ctx, tx, leases)
		}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			for i, o := range outcomes {
				if done.Applied[i] && !o.Silent() { // one transaction: if one is there, all are
					return queuestore.Recorded(ctx, tx, o.Key)
				}
			}
			return true, nil
		}})
		if err == nil {
			return done, nil
		}
		select {
		case <-ctx.Done():
			return done, err
		case <-time.After(pause):
		}
	}
}
