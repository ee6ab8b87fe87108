package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// sweeper makes due items ready and ends what ran out of time. Its lock is held for the whole of a
// sweep, also while that waits for the database.
type sweeper struct {
	mu    sync.Mutex
	looks looks
	floor time.Time // whatever was due before has been swept
}

const (
	sweepBatch = 1000
	maxLost    = 3 // leases of an item; then the item is taken to kill the processes that attempt it
	noneDue    = 24 * time.Hour
)

// sweep returns how many items it moved, and how long it is until more fall due: a day at most. It
// calls count for each item that it ended or took from a lost lease. With exact, nothing that is
// due is left.
func (e *Engine) sweep(
	ctx context.Context, count func(*queuestore.Outcome), exact bool,
) (moved int, until time.Duration, err error) {
	s := &e.sweeper
	s.mu.Lock()
	defer s.mu.Unlock()
	whole := exact || s.looks.whole()
	for {
		after := queuestore.LongAgo
		if !whole {
			after = s.floor
		}
		var run *sweep
		began := time.Now()
		err := e.Store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
			run = &sweep{e: e, tx: tx, after: after}
			return run.do(ctx)
		}})
		if err != nil {
			return moved, 0, err
		}
		moved += run.moved
		for _, o := range run.ended {
			count(o)
		}
		e.tally.add(run.ended, nil)
		e.observeFinished(ctx, run.ended, nil, began)
		e.announce(run.ended)
		if run.more {
			continue
		}
		if whole && run.moved < sweepBatch/10 { // otherwise it is the moving that takes the time
			s.looks.took(run.looked, e.SlowLook)
		}
		s.floor = run.tx.Now.Add(-overlap)
		return moved, run.until, nil
	}
}

// sweep is one run of the transaction that sweeps. A transaction that is run again makes a new one.
type sweep struct {
	e     *Engine
	tx    *sqlstore.Tx
	after time.Time // it looks at what fell due later

	moved  int
	ended  []*queuestore.Outcome // of lost leases and passed deadlines
	more   bool                  // another sweep may find more
	until  time.Duration         // until more falls due
	looked time.Duration         // how long its looks took
}

func (s *sweep) do(ctx context.Context) error {
	began := time.Now()
	due, err := s.e.Store.Due(ctx, s.tx, s.after, s.tx.Now, sweepBatch)
	if err != nil {
		return err
	}
	expired, err := queuestore.LockExpired(ctx, s.tx, s.after, sweepBatch)
	if err != nil {
		return err
	}
	overdue, err := s.e.Store.Overdue(ctx, s.tx, s.after, s.tx.Now, sweepBatch)
	if err != nil {
		return err
	}
	s.looked = time.Since(began)
	s.moved = due + len(expired.Items) + len(overdue)
	if err := s.finishLost(ctx, expired.Items, overdue); err != nil {
		return err
	}
	dropped, err := queuestore.DropExpired(ctx, s.tx, expired)
	if err != nil {
		return err
	}
	s.more = s.moved >= sweepBatch || expired.More && len(expired.Items)+dropped > 0
	next, err := queuestore.NextDue(ctx, s.tx, s.after)
	if s.until = next.Sub(s.tx.Now); next.IsZero() {
		s.until = noneDue
	}
	return err
}

// finishLost finishes items whose lease was lost or whose deadline has passed. Their rows are
// locked, so that all outcomes apply.
func (s *sweep) finishLost(ctx context.Context, expired, overdue []queuestore.Claimed) error {
	if len(expired)+len(overdue) == 0 {
		return nil
	}
	all := slices.Concat(expired, overdue)
	nos := make([]int64, len(all))
	for i := range all {
		nos[i] = queuestore.DestinationOf(all[i].Lane)
	}
	infos, err := queuestore.LaneInfos(ctx, s.tx, nos)
	if err != nil {
		return err
	}
	s.ended = make([]*queuestore.Outcome, len(all))
	for i := range all {
		o := &queuestore.Outcome{No: nos[i]}
		o.Key, o.Destination, o.Took = all[i].Key, infos[nos[i]].ID, sqlstore.NotBegun
		s.decideLost(o, &all[i], i >= len(expired))
		s.ended[i] = o
	}
	_, err = s.e.Store.Finish(ctx, s.tx, s.ended)
	return err
}

// decideLost is the rule for what becomes of an item that is overdue or whose lease was lost.
func (s *sweep) decideLost(o *queuestore.Outcome, c *queuestore.Claimed, overdue bool) {
	switch {
	case overdue, !c.Deadline.IsZero() && !c.Deadline.After(s.tx.Now):
		o.State, o.Reason = queue.Dead, queue.DeadlinePassed
	case c.Cancel != queue.None:
		o.State, o.Reason = queue.Cancelled, c.Cancel
	case c.Lost+1 >= maxLost:
		o.State, o.Reason = queue.Dead, queue.Poison
	default:
		o.State, o.Reason, o.Lost = queue.Ready, queue.LeaseLost, true
	}
}

// Next returns when something falls due that is not ready yet, zero if nothing will.
func (e *Engine) Next(ctx context.Context) (at time.Time, err error) {
	err = e.Store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		at, err = queuestore.NextDue(ctx, tx, queuestore.LongAgo)
		return err
	})
	return at, err
}
