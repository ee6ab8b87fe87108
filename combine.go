package delivery

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// combiner has Deliver calls of one process that come at the same time share a transaction. A call that comes alone makes
// its own at once; those that come while it is under way wait for the next and go together. Where one takes long, another
// goes beside it. Each is made by the goroutine of one of its calls, the leader: there is no other.
type combiner struct {
	mu       sync.Mutex
	underWay int // transactions
	waiting  []*call
}

// call is a Deliver call that may share its transaction.
type call struct {
	ctx     context.Context //nolint:containedctx // the caller's, who waits
	org     *Org
	request *prepared
	turn    chan turn // has room for one

	receipt *Receipt
	err     error
}

func (c *call) outcome() (*Receipt, error) {
	if c.err != nil {
		return nil, c.err
	}
	return c.receipt, nil
}

// turn is what a waiting call is told.
type turn int

const (
	lead  turn = iota // make the next transaction
	done              // receipt or err is set
	alone             // make one of your own: the shared one failed, which may be for the sake of another call
)

const (
	combinePatience   = 10 * time.Millisecond // of a call that waits, until it makes a transaction beside those under way
	mostCombined      = 500
	mostCombinedBytes = 1 << 20
	mostOrganizations = 16 // each takes a statement
)

// deliver accepts a request, together with others where there are any. When ctx ends before the request is accepted, it
// is not.
func (c *combiner) deliver(ctx context.Context, o *Org, p *prepared) (*Receipt, error) {
	me := &call{ctx: ctx, org: o, request: p, turn: make(chan turn, 1)}
	c.mu.Lock()
	if c.underWay == 0 {
		c.underWay++
		me.turn <- lead
	} else {
		c.waiting = append(c.waiting, me)
	}
	c.mu.Unlock()
	t, err := c.wait(me)
	switch {
	case err != nil:
		return nil, err
	case t == done:
		return me.outcome()
	case t == lead:
		others, err := c.share(me)
		c.handOver()
		unknown := errors.Is(err, sqlstore.ErrOutcomeUnknown)
		for _, other := range others {
			switch other.err = err; {
			case err == nil, unknown:
				other.turn <- done
			default:
				other.turn <- alone
			}
		}
		if err == nil || unknown || len(others) == 0 && refused(err) {
			me.err = err
			return me.outcome()
		}
	}
	receipts, err := o.accept(ctx, []*prepared{p})
	if err != nil {
		return nil, err
	}
	return receipts[0], nil
}

// wait returns when it is the call's turn, or when its context has ended before.
func (c *combiner) wait(me *call) (turn, error) {
	patience := time.NewTimer(combinePatience)
	defer patience.Stop()
	select {
	case t := <-me.turn:
		return t, nil
	case <-me.ctx.Done():
	case <-patience.C:
	}
	c.mu.Lock()
	at := slices.Index(c.waiting, me)
	if at < 0 { // it takes part in a transaction
		c.mu.Unlock()
		return <-me.turn, nil
	}
	defer c.mu.Unlock()
	c.waiting = slices.Delete(c.waiting, at, at+1)
	if err := me.ctx.Err(); err != nil {
		return 0, err
	}
	c.underWay++
	return lead, nil
}

// share makes a transaction for the leader and, once that has begun, for whoever waits by then. All of them are accepted
// or none; it gives up when the context of any of them ends.
func (c *combiner) share(leader *call) (others []*call, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(leader.ctx))
	defer cancel()
	defer context.AfterFunc(leader.ctx, cancel)()
	var all []*call
	var stops []func() bool
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	err = leader.org.s.store.Combine(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		if all == nil {
			others = c.board(leader)
			for _, other := range others {
				stops = append(stops, context.AfterFunc(other.ctx, cancel))
			}
			// Transactions that share idempotency keys take them in one order.
			all = append([]*call{leader}, others...)
			slices.SortStableFunc(all, func(a, b *call) int { return cmp.Compare(a.org.name, b.org.name) })
		}
		return enqueueAll(ctx, tx, all)
	}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		for _, call := range all {
			if !call.receipt.Duplicate { // one transaction: if one is there, all are
				d, err := tx.Delivery(ctx, call.org.name, call.receipt.ID)
				return d != nil, err
			}
		}
		return true, nil
	})
	return others, err
}

// enqueueAll enqueues calls that are sorted by organization, with a statement for each.
func enqueueAll(ctx context.Context, tx *sqlstore.Tx, calls []*call) error {
	for len(calls) > 0 {
		org := calls[0].org
		n := slices.IndexFunc(calls, func(c *call) bool { return c.org.name != org.name })
		if n < 0 {
			n = len(calls)
		}
		requests := make([]*prepared, n)
		for i, c := range calls[:n] {
			requests[i] = c.request
		}
		receipts, err := org.enqueue(ctx, tx, requests)
		if err != nil {
			return err
		}
		for i, r := range receipts {
			calls[i].receipt = r
		}
		calls = calls[n:]
	}
	return nil
}

// board takes calls that wait into the leader's transaction, in the order they came.
func (c *combiner) board(leader *call) []*call {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := len(leader.request.Payload.Inline)
	organizations := map[string]bool{leader.org.name: true}
	n := 0
	for ; n < min(len(c.waiting), mostCombined-1); n++ {
		next := c.waiting[n]
		size += len(next.request.Payload.Inline)
		organizations[next.org.name] = true
		if size > mostCombinedBytes || len(organizations) > mostOrganizations {
			break
		}
	}
	batch := slices.Clone(c.waiting[:n])
	c.waiting = slices.Delete(c.waiting, 0, n)
	return batch
}

// handOver has the call that waits longest make the next transaction, unless there are others under way.
func (c *combiner) handOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 || c.underWay > 1 {
		c.underWay--
		return
	}
	c.waiting[0].turn <- lead
	c.waiting = slices.Delete(c.waiting, 0, 1)
}
