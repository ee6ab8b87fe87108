// Package combine is a group commit: calls that arrive while a transaction runs share the next one.
package combine

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Group shares transactions between concurrent calls of Do. A call that comes alone makes its own
// at once; calls that come while one is under way wait for the next and go together. A caller's
// goroutine, the leader, runs the transaction; a Group starts none. All fields are required, and
// fixed once Do has been called.
type Group[T, R any] struct {
	// Together makes one transaction for several calls: all of them succeed or none. Once the
	// transaction has begun it calls board, which returns the items of the calls that take part,
	// the leader's first. A repeated call of board, in a transaction that is run again, returns the
	// same. The results are in the order of the items.
	Together func(ctx context.Context, board func() []T) ([]R, error)
	// Alone makes a transaction for one call, after one that it shared has failed.
	Alone func(ctx context.Context, item T) (R, error)
	// Room returns, for a transaction of leader, a function that reports whether one more call fits
	// in, and counts it if so.
	Room func(leader T) func(next T) bool
	// Shared reports whether err holds for every call that took part, so that none may be repeated.
	Shared func(err error) bool
	// Own reports whether err of a transaction that nobody shared is the leader's answer.
	Own func(err error) bool

	mu       sync.Mutex
	underWay int // transactions
	waiting  []*call[T, R]
}

// call is a call of Do that may share its transaction.
type call[T, R any] struct {
	ctx  context.Context //nolint:containedctx // the caller's, who waits
	item T
	turn chan turn // has room for one

	result R
	err    error
}

// turn is what a waiting call is told.
type turn int

const (
	lead  turn = iota // make the next transaction
	done              // result or err is set
	alone             // make one of your own: the shared one failed, perhaps because of another call
)

// patience is how long a call waits before it makes a transaction besides those under way.
const patience = 10 * time.Millisecond

// Do handles item, together with those of other calls where there are any. If ctx ends before the
// item has been handled, it is not.
func (g *Group[T, R]) Do(ctx context.Context, item T) (R, error) {
	me := &call[T, R]{ctx: ctx, item: item, turn: make(chan turn, 1)}
	g.mu.Lock()
	if g.underWay == 0 {
		g.underWay++
		me.turn <- lead
	} else {
		g.waiting = append(g.waiting, me)
	}
	g.mu.Unlock()
	t, err := g.wait(me)
	switch {
	case err != nil:
		var none R
		return none, err
	case t == done:
		return me.result, me.err
	case t == lead && g.lead(me):
		return me.result, me.err
	}
	return g.Alone(ctx, item)
}

// wait returns when it is the call's turn, or when its context has ended before that.
func (g *Group[T, R]) wait(me *call[T, R]) (turn, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case t := <-me.turn:
		return t, nil
	case <-me.ctx.Done():
	case <-timer.C:
	}
	g.mu.Lock()
	at := slices.Index(g.waiting, me)
	if at < 0 { // it takes part in a transaction
		g.mu.Unlock()
		return <-me.turn, nil
	}
	defer g.mu.Unlock()
	g.waiting = slices.Delete(g.waiting, at, at+1)
	if err := me.ctx.Err(); err != nil {
		return 0, err
	}
	g.underWay++
	return lead, nil
}

// lead makes a transaction for me and, once that has begun, for the calls that wait by then. It
// tells the others their turn, and reports whether me has its answer.
func (g *Group[T, R]) lead(me *call[T, R]) (answered bool) {
	others, results, err := g.share(me)
	g.handOver()
	shared := err == nil || g.Shared(err)
	for i, other := range others {
		other.err = err
		if err == nil {
			other.result = results[i+1]
		}
		if shared {
			other.turn <- done
		} else {
			other.turn <- alone
		}
	}
	if err == nil {
		me.result = results[0]
	}
	me.err = err
	return shared || len(others) == 0 && g.Own(err)
}

// share runs Together. It is cancelled when the context of any call that takes part ends.
func (g *Group[T, R]) share(leader *call[T, R]) (others []*call[T, R], results []R, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(leader.ctx))
	defer cancel()
	defer context.AfterFunc(leader.ctx, cancel)()
	var items []T
	var stops []func() bool
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	results, err = g.Together(ctx, func() []T {
		if items == nil {
			others = g.board(leader)
			items = append(items, leader.item)
			for _, other := range others {
				items = append(items, other.item)
				stops = append(stops, context.AfterFunc(other.ctx, cancel))
			}
		}
		return items
	})
	return others, results, err
}

// board takes waiting calls into the leader's transaction, in the order they came.
func (g *Group[T, R]) board(leader *call[T, R]) []*call[T, R] {
	g.mu.Lock()
	defer g.mu.Unlock()
	fits := g.Room(leader.item)
	n := 0
	for n < len(g.waiting) && fits(g.waiting[n].item) {
		n++
	}
	boarded := slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	return boarded
}

// handOver has the call that waits longest make the next transaction, unless others are under way.
func (g *Group[T, R]) handOver() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 || g.underWay > 1 {
		g.underWay--
		return
	}
	g.waiting[0].turn <- lead
	g.waiting = slices.Delete(g.waiting, 0, 1)
}
