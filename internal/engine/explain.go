package engine

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// Why is the reason why a ready item waits.
type Why struct {
	Reason queue.Reason
	Next   time.Time // when it may go on; zero if that is not known
	Ahead  int       // items of its destination and priority before it, at most MaxAhead
	Max    int       // the limit that is reached, if Reason is one
	Rate   float64   // likewise, in items a second
}

// MaxAhead bounds Why.Ahead.
const MaxAhead = 10_000

// Why returns why an item that is ready and not held waits. handled are the types that any process
// attempts. It looks at what a claim looks at, without a lock.
func (e *Engine) Why(
	ctx context.Context, tx *sqlstore.Tx, item *queuestore.ItemRow, d *sqlstore.DestinationRow, handled map[string]bool,
) (w Why, err error) {
	if w.Ahead, err = queuestore.Ahead(ctx, tx, item.Lane, item.Seq, MaxAhead); err != nil {
		return w, err
	}
	if e.Types[d.Type] == nil && !handled[d.Type] {
		w.Reason = queue.NoHandler
		return w, nil
	}
	policy := e.Policy()
	limits, breaker := d.Limits.Or(policy.Limits), d.Breaker.Or(policy.Breaker)
	inFlight, err := e.Store.InFlight(ctx, tx, map[int64]string{d.No: d.Organization})
	if err != nil {
		return w, err
	}
	state, err := queuestore.GateOf(ctx, tx, d.Organization, d.No)
	if err != nil {
		return w, err
	}
	g := newGate(limits, breaker, &item.Of, state, inFlight[d.No])
	busy := 0
	if policy.OrganizationConcurrency > 0 {
		if busy, err = e.Store.InFlightOf(ctx, tx, d.Organization); err != nil {
			return w, err
		}
	}
	n := inFlight[d.No]
	switch {
	case item.Of.Breaker != retry.Closed && g.left == 0:
		w.Reason, w.Max = queue.Probing, breaker.Probes
	case limits.Ordered && (n > 0 || w.Ahead > 0):
		w.Reason = queue.InOrder
	case limits.Concurrency > 0 && n >= limits.Concurrency:
		w.Reason, w.Max = queue.ConcurrencyLimit, limits.Concurrency
	case policy.OrganizationConcurrency > 0 && busy >= policy.OrganizationConcurrency:
		w.Reason, w.Max = queue.OrganizationBusy, policy.OrganizationConcurrency
	case g.rate > 0 && int(g.tokens+tokenDust) <= w.Ahead:
		w.Reason, w.Rate = queue.RateLimit, g.rate
		if item.Of.CatchUpTo > 0 && g.rate != limits.PerSecond {
			w.Reason = queue.CatchingUp
		}
		missing := float64(w.Ahead+1) - g.tokens
		w.Next = tx.Now.Add(time.Duration(missing / g.rate * float64(time.Second)))
	default:
		w.Reason = queue.Turn
	}
	return w, nil
}
