package engine

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/observe"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// observeClaim reports a claim that began then.
func (e *Engine) observeClaim(ctx context.Context, items int, began time.Time) {
	if e.Observer != nil {
		e.Observer.Claimed(ctx, observe.Claim{Items: items, Took: time.Since(began)})
	}
}

// observeFinished reports outcomes that were applied; nil stands for all of them.
func (e *Engine) observeFinished(ctx context.Context, outcomes []*queuestore.Outcome, applied []bool, began time.Time) {
	if e.Observer == nil {
		return
	}
	b := observe.Batch{Took: time.Since(began)}
	n := 0
	for i, o := range outcomes {
		if applied == nil || applied[i] {
			b.Add(o.State, o.Reason)
			n++
		}
	}
	if n > 0 {
		e.Observer.Finished(ctx, b)
	}
}

// observe reports that the handler is about to be called. It returns the context for that.
func (a *attempt) observe(ctx context.Context) context.Context {
	if a.e.Observer == nil {
		return ctx
	}
	d := a.j.Content
	ctx, a.observed = a.e.Observer.Attempt(ctx, observe.Attempt{
		Organization: a.j.Organization, Delivery: a.j.Delivery, Item: sqlstore.ItemID(a.j.Delivery, a.j.N),
		Destination: a.j.destination.ID, Type: a.j.destination.Type, Topic: d.Topic, Number: a.j.Attempt + 1,
		Test: d.Options.Test, CreatedAt: d.CreatedAt, TraceParent: d.TraceParent,
	})
	return ctx
}

// observeEnd reports what the attempt came to, if its start was reported.
func (a *attempt) observeEnd(o *queuestore.Outcome) {
	if a.observed != nil {
		a.observed(observe.Outcome{State: o.State, Reason: o.Reason, Took: o.Took, Err: a.err})
	}
}
