package delivery

import (
	"context"
	"fmt"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// Replay asks for a delivery to be made once more. Only Delivery is required.
type Replay struct {
	Delivery string // its id, whatever became of it
	// Destinations are ids, of any destinations of the organization; without any, those of the delivery are meant. One of
	// them that was deleted is ErrNotFound.
	Destinations []string
	// IdempotencyKey makes a repeated call harmless, as that of a Request does: without one, each call is a replay.
	IdempotencyKey string
	NotBefore      time.Time // no attempt is made earlier
	Deadline       time.Time // dead rather than late; the old delivery's does not apply
}

// Replay accepts the payload of an earlier delivery as a new one, with message ids of its own, so that the other side does
// not take it for a repetition. Topic, tags, metadata, correlation id, priority and retry policy are those of the old
// delivery, as are the params and retry policies that it has for single destinations; Status.ReplayOf is its id. A stored
// payload is shared by both. One that is gone is ErrNotFound, as is a delivery that the organization does not have.
func (o *Org) Replay(ctx context.Context, r Replay) (_ *Receipt, err error) {
	if err := o.authorize(ctx, access.Deliver); err != nil {
		return nil, err
	}
	defer o.watch(ctx, access.Deliver, &err)
	id, ok := canonicalID(r.Delivery)
	if !ok {
		return nil, notFound("delivery", r.Delivery)
	}
	var old *sqlstore.Delivery
	var items []sqlstore.EnqueuedItem
	err = o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		if old, err = tx.Delivery(ctx, o.name, id); err != nil || old == nil {
			return err
		}
		items, err = tx.ItemsOf(ctx, o.name, id)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case old == nil:
		return nil, notFound("delivery", r.Delivery)
	case old.Faulty != nil:
		return nil, fmt.Errorf("delivery: %s cannot be replayed: %w", id, old.Faulty)
	}
	p, err := o.prepareReplay(r, old, items)
	if err != nil {
		return nil, err
	}
	var receipt *Receipt
	err = o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		receipts, err := o.enqueueReplay(ctx, tx, p)
		if err == nil {
			receipt = receipts[0]
		}
		return err
	}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		if receipt.Duplicate {
			return true, nil
		}
		d, err := tx.Delivery(ctx, o.name, p.ID)
		return d != nil, err
	})
	if err != nil {
		return nil, err
	}
	o.s.engine.Wake()
	return receipt, nil
}

// prepareReplay makes the request that the old delivery was, with what the replay changes.
func (o *Org) prepareReplay(r Replay, old *sqlstore.Delivery, items []sqlstore.EnqueuedItem) (*prepared, error) {
	req := Request{
		Payload: payload.Bytes("", nil), // stands for the stored one
		Topic:   old.Topic, Destinations: r.Destinations, IdempotencyKey: r.IdempotencyKey, CorrelationID: old.CorrelationID,
		Tags: old.Tags, Metadata: old.Metadata, Priority: Priority(old.Priority), NotBefore: r.NotBefore, Deadline: r.Deadline,
		Retry: old.Options.Retry,
	}
	if len(req.Destinations) == 0 {
		for _, item := range items {
			req.Destinations = append(req.Destinations, item.Destination)
		}
	}
	batch, err := o.prepareAll([]Request{req}, "")
	if err != nil {
		return nil, err
	}
	p := batch[0]
	p.Payload, p.ReplayOf = old.Payload, old.ID
	p.request.Payload = payload.Payload{}
	for _, item := range items {
		option, ok := old.Options.Items[item.N]
		for n, to := range p.Items {
			if ok && to.Destination == item.Destination {
				if p.Options.Items == nil {
					p.Options.Items = map[int]sqlstore.Option{}
				}
				p.Options.Items[n+1] = option
			}
		}
	}
	return p, nil
}

func (o *Org) enqueueReplay(ctx context.Context, tx *sqlstore.Tx, p *prepared) ([]*Receipt, error) {
	found, err := tx.LockDelivery(ctx, o.name, p.ReplayOf)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, notFound("delivery", p.ReplayOf)
	}
	if p.Payload.ID != "" {
		if _, found, err = tx.PayloadInfo(ctx, o.name, p.Payload.ID); err != nil {
			return nil, err
		}
		if !found {
			return nil, notFound("the payload of delivery", p.ReplayOf)
		}
	}
	receipts, err := o.enqueue(ctx, tx, []*prepared{p})
	if err != nil || receipts[0].Duplicate {
		return receipts, err
	}
	return receipts, tx.LinkReplay(ctx, o.name, p.ID, p.ReplayOf)
}
