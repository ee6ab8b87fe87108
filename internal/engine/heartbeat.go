package engine

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// heartbeat prolongs leases until stopBeat is closed. It also ends attempts that have no point any
// more.
func (p *pipeline) heartbeat() {
	tick := time.NewTicker(p.e.Lease / 6)
	defer tick.Stop()
	for {
		select {
		case <-p.stopBeat:
			return
		case now := <-tick.C:
			p.beat(p.flights.look(now, p.e.Lease/6))
		}
	}
}

// beat is what one heartbeat sees and does.
type beat struct {
	held     map[*lease][]*job // by the leases that are old enough to be prolonged, or lost
	leases   []int64           // of them, those to prolong
	progress map[*job]int64    // bytes, where they changed since the last beat
	stuck    []*job            // attempts that ignore their timeout; they leave their lease

	// What the database said.
	prolonged map[int64]bool
	flagged   []queuestore.Changed // to be cancelled
}

// look returns what a beat has to do. Leases that were claimed less than young ago can wait.
func (f *flights) look(now time.Time, young time.Duration) *beat {
	b := &beat{held: map[*lease][]*job{}, progress: map[*job]int64{}}
	f.mu.Lock()
	defer f.mu.Unlock()
	for j := range f.jobs {
		l := j.lease
		if l == nil || now.Sub(l.claimed) < young {
			continue
		}
		if !j.giveUp.IsZero() && now.After(j.giveUp) {
			b.stuck = append(b.stuck, j)
			continue
		}
		if b.held[l] == nil && !l.lost {
			b.leases = append(b.leases, l.id)
		}
		b.held[l] = append(b.held[l], j)
		if done := j.progress.Load(); done != j.noted {
			b.progress[j] = done
		}
	}
	return b
}

// beat writes what a beat has to do, and applies what the database says.
func (p *pipeline) beat(b *beat) {
	if len(b.held)+len(b.stuck) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(p.base, p.e.Lease/3)
	defer cancel()
	write := func(ctx context.Context, tx *sqlstore.Tx) error { return b.write(ctx, tx, p.e.Lease) }
	var err error
	if len(b.stuck) == 0 {
		err = p.e.Store.CommitRelaxed(ctx, write)
	} else { // a crash of the database must not undo it: the leases that they left are dropped without them
		err = p.e.Store.Commit(ctx, sqlstore.Commit{Do: write})
	}
	if err != nil {
		p.e.Logger.WarnContext(ctx, "delivery: leases could not be prolonged", "leases", len(b.leases), "error", err)
		return
	}
	p.apply(b)
}

// write prolongs leases, notes progress, and moves stuck items to a lease that ends at once.
func (b *beat) write(ctx context.Context, tx *sqlstore.Tx, lease time.Duration) (err error) {
	if b.prolonged, err = queuestore.Prolong(ctx, tx, b.leases, tx.Now.Add(lease)); err != nil {
		return err
	}
	if b.flagged, err = queuestore.Flagged(ctx, tx, b.leases); err != nil {
		return err
	}
	for j, done := range b.progress {
		if err := queuestore.NoteProgress(ctx, tx, j.Key, done); err != nil {
			return err
		}
	}
	keys := make([]sqlstore.Key, len(b.stuck))
	for i, j := range b.stuck {
		keys[i] = j.Key
	}
	return queuestore.Abandon(ctx, tx, newLease(), keys)
}

// apply acts on a beat that was written: stuck attempts leave their leases, and attempts whose
// lease is lost or whose delivery is to be cancelled end.
func (p *pipeline) apply(b *beat) {
	for j, done := range b.progress {
		j.noted = done
	}
	p.flights.leave(b.stuck)
	reasons := map[sqlstore.Key]queue.Reason{}
	for _, c := range b.flagged {
		reasons[c.Key] = c.Cancel
	}
	for l, jobs := range b.held {
		for _, j := range jobs {
			switch reason := reasons[j.Key]; {
			case !b.prolonged[l.id]:
				p.flights.end(j, handler.ErrLeaseLost)
			case reason != queue.None:
				p.flights.end(j, cancellation{reason})
			}
		}
	}
}

// statistics writes now and then what attempts came to, until stopBeat is closed.
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
