package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/spool"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// maxItems is more than a delivery can have.
const maxItems = 1 << 16

// Retry attempts items of a delivery now: the same items, under the same message ids. A dead letter
// becomes pending again with all the attempts that its policy allows, and its history goes on. An
// item that waits for its next retry is attempted now and keeps its remaining attempts. Items that
// are pending otherwise (ready, under way, before their NotBefore) stay as they are. Without
// destinations, Retry applies to all items of the delivery.
//
// If one item cannot be retried, none is, and the error is [ErrNotRetryable]. That is so for items
// that were delivered, cancelled or purged, if they are named or nothing else is left; and for dead
// letters whose deadline has passed (a deadline is a promise), whose destination was deleted or
// whose payload is gone. [Org.Replay] works for all of these but the last.
func (o *Org) Retry(ctx context.Context, id string, destinations ...string) (err error) {
	if err := o.authorize(ctx, access.OperateDeliveries); err != nil {
		return err
	}
	defer o.watch(ctx, access.OperateDeliveries, &err)
	canonical, ok := sqlstore.CanonicalID(id)
	if !ok {
		return notFound("delivery", id)
	}
	var named []string
	for _, d := range destinations {
		c, ok := sqlstore.CanonicalID(d)
		if !ok {
			return notFound("destination", d)
		}
		named = append(named, c)
	}
	var records []sqlstore.Key // that the last run of the transaction made
	err = o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		records, err = o.retry(ctx, tx, canonical, named)
		return err
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		if len(records) == 0 {
			return true, nil
		}
		return queuestore.Recorded(ctx, tx, records[0])
	}})
	if err == nil {
		o.s.engine.Wake()
	}
	return err
}

// redelivery is what Retry finds to do.
type redelivery struct {
	named   []string // the destinations that are meant; none: all
	found   []string // those that have something to retry
	revive  []queuestore.DeadLetterRow
	hasten  []*queuestore.Outcome // of items that wait for a retry
	records []sqlstore.Key        // of the history that it will make
	errs    []error
}

// retry returns the keys of the records that it makes.
func (o *Org) retry(ctx context.Context, tx *sqlstore.Tx, id string, named []string) ([]sqlstore.Key, error) {
	// The waiting items are locked before the dead letters are read: none can become one in
	// between.
	waiting, err := o.waiting(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	letters, err := queuestore.DeadLetters(
		ctx, tx, o.name, queuestore.DeadFilter{Delivery: id}, queuestore.DeadPage{Limit: maxItems, Lock: true},
	)
	if err != nil {
		return nil, err
	}
	r := &redelivery{named: named}
	for _, l := range letters {
		r.letter(l, tx.Now)
	}
	for _, w := range waiting {
		r.waiting(w)
	}
	left := slices.DeleteFunc(slices.Clone(named), func(d string) bool { return slices.Contains(r.found, d) })
	if len(left) > 0 || len(r.found) == 0 {
		r.errs = append(r.errs, o.explainRest(ctx, tx, id, left))
	}
	if err := errors.Join(r.errs...); err != nil {
		return nil, err
	}
	if len(r.hasten) > 0 {
		if _, err := o.s.store.Finish(ctx, tx, r.hasten); err != nil {
			return nil, err
		}
	}
	return r.records, o.s.store.Revive(ctx, tx, r.revive)
}

func (r *redelivery) means(destination string) bool {
	return len(r.named) == 0 || slices.Contains(r.named, destination)
}

func (r *redelivery) letter(l queuestore.DeadLetterRow, now time.Time) {
	if !r.means(l.Destination) {
		return
	}
	r.found = append(r.found, l.Destination)
	if why := refusal(l, now); why != "" {
		r.errs = append(r.errs, fmt.Errorf("%w: item %s: %s", ErrNotRetryable, sqlstore.ItemID(l.Delivery, l.N), why))
	}
	r.revive = append(r.revive, l)
	r.records = append(r.records, l.Returned())
}

func (r *redelivery) waiting(w queuestore.ItemRow) {
	if !r.means(w.Destination) {
		return
	}
	r.found = append(r.found, w.Destination)
	if w.State != queue.Scheduled || w.Attempt == 0 {
		return
	}
	out := &queuestore.Outcome{No: queuestore.DestinationOf(w.Lane)}
	out.Key, out.Destination = w.Key, w.Destination
	out.State, out.Reason, out.Took = queue.Ready, queue.Requested, sqlstore.NotBegun
	r.hasten = append(r.hasten, out)
	r.records = append(r.records, w.Key)
}

// waiting locks and lists the pending items of a delivery.
func (o *Org) waiting(ctx context.Context, tx *sqlstore.Tx, id string) ([]queuestore.ItemRow, error) {
	rows, err := o.s.store.Pending(ctx, tx, o.name, id, 0, maxItems)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	nos := make([]int64, len(rows))
	for i, r := range rows {
		nos[i] = queuestore.DestinationOf(r.Lane)
	}
	infos, err := queuestore.LaneInfos(ctx, tx, nos)
	if err != nil {
		return nil, err
	}
	items := make([]queuestore.ItemRow, len(rows))
	for i, r := range rows {
		items[i] = queuestore.ItemRow{Claimed: r, Destination: infos[nos[i]].ID}
	}
	return items, nil
}

// refusal says why a dead letter cannot be retried, "" if it can.
func refusal(l queuestore.DeadLetterRow, now time.Time) string {
	switch {
	case l.Deleted:
		return "its destination was deleted"
	case l.Lost:
		return "its payload is gone"
	case !l.Deadline.IsZero() && !l.Deadline.After(now):
		return fmt.Sprintf("its deadline, %s, has passed; Replay can give it another", stamp(l.Deadline))
	}
	return ""
}

// explainRest says why there is nothing to retry of a delivery or, with destinations, of their
// items. It is nil where another call has retried them since they were looked for.
func (o *Org) explainRest(ctx context.Context, tx *sqlstore.Tx, id string, destinations []string) error {
	d, err := tx.Delivery(ctx, o.name, id)
	if err != nil {
		return err
	}
	if d == nil {
		return notFound("delivery", id)
	}
	pending, err := queuestore.Items(ctx, tx, o.name, id)
	if err != nil {
		return err
	}
	ends, err := queuestore.Ends(ctx, tx, o.name, id)
	if err != nil {
		return err
	}
	if len(destinations) == 0 {
		if len(pending) > 0 {
			return nil
		}
		return fmt.Errorf("%w: no item of delivery %q is a dead letter or waits for a retry", ErrNotRetryable, id)
	}
	var errs []error
	for _, name := range destinations {
		if slices.ContainsFunc(pending, func(i queuestore.ItemRow) bool { return i.Destination == name }) {
			continue
		}
		at := slices.IndexFunc(ends, func(e queuestore.End) bool { return e.Destination == name })
		if at < 0 {
			errs = append(errs, notFound("destination", name))
			continue
		}
		why := "it was " + ends[at].State.String()
		if ends[at].State == queue.Dead {
			why = "it was purged; Replay delivers it again"
		}
		errs = append(errs, fmt.Errorf("%w: item %s: %s", ErrNotRetryable, sqlstore.ItemID(id, ends[at].N), why))
	}
	return errors.Join(errs...)
}

// Replay asks for a delivery to be made once more. Only Delivery is required.
type Replay struct {
	Delivery string // its id, whatever became of it
	// Destinations are ids of any destinations of the organization. Default: those of the delivery.
	// A deleted one is ErrNotFound.
	Destinations []string
	// IdempotencyKey makes a repeated call harmless, as that of a Request does. Without one, each
	// call is a replay.
	IdempotencyKey string
	NotBefore      time.Time // no attempt is made earlier
	Deadline       time.Time // an item that is not delivered by then is dead; the old deadline does not apply
}

// Replay accepts the payload of an earlier delivery as a new one, with message ids of its own, so
// that the other side does not take it for a repetition. Topic, tags, metadata, correlation id,
// priority and retry policy are those of the old delivery, and so are the params and retry policies
// that it has for single destinations; Status.ReplayOf is its id. A stored payload is shared by
// both. A payload that is gone is [ErrNotFound], as is a delivery that the organization does not
// have.
func (o *Org) Replay(ctx context.Context, r Replay) (_ *Receipt, err error) {
	if err := o.authorize(ctx, access.Deliver); err != nil {
		return nil, err
	}
	defer o.watch(ctx, access.Deliver, &err)
	a, err := o.replayed(ctx, r)
	if err != nil {
		return nil, err
	}
	var receipts []*Receipt
	err = o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		receipts, err = o.insertReplay(ctx, tx, a)
		return err
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		return inserted(ctx, tx, []acceptance{a}, receipts)
	}})
	if err != nil {
		return nil, err
	}
	o.s.observeAccepted(ctx, []acceptance{a}, receipts, false)
	o.s.engine.Wake()
	return receipts[0], nil
}

// replayed makes the request that the old delivery was, with what the replay changes.
func (o *Org) replayed(ctx context.Context, r Replay) (a acceptance, err error) {
	old, items, err := o.replayable(ctx, r.Delivery)
	if err != nil {
		return a, err
	}
	req := Request{
		Payload:        payload.Bytes("", nil), // stands for the stored one
		Topic:          old.Topic,
		Destinations:   r.Destinations,
		IdempotencyKey: r.IdempotencyKey,
		CorrelationID:  old.CorrelationID,
		Tags:           old.Tags,
		Metadata:       old.Metadata,
		Priority:       Priority(old.Priority),
		NotBefore:      r.NotBefore,
		Deadline:       r.Deadline,
		Retry:          old.Options.Retry,
	}
	if len(req.Destinations) == 0 {
		for _, item := range items {
			req.Destinations = append(req.Destinations, item.Destination)
		}
	}
	drafts, err := o.drafts([]Request{req}, "")
	if err != nil {
		return a, err
	}
	d := drafts[0]
	d.row.ReplayOf = old.ID
	for _, item := range items {
		option, ok := old.Options.Items[item.N]
		for i, to := range d.row.Items {
			if ok && to.Destination == item.Destination {
				d.option(i+1, option)
			}
		}
	}
	return acceptance{draft: d, org: o, content: old.Payload}, nil
}

// replayable reads a delivery that can be replayed.
func (o *Org) replayable(
	ctx context.Context,
	id string,
) (old *sqlstore.DeliveryRow, items []queuestore.EnqueuedItem, err error) {
	canonical, ok := sqlstore.CanonicalID(id)
	if !ok {
		return nil, nil, notFound("delivery", id)
	}
	err = o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		if old, err = tx.Delivery(ctx, o.name, canonical); err != nil || old == nil {
			return err
		}
		items, err = queuestore.ItemsOf(ctx, tx, o.name, canonical)
		return err
	})
	switch {
	case err != nil:
		return nil, nil, err
	case old == nil:
		return nil, nil, notFound("delivery", id)
	case old.Faulty != nil:
		return nil, nil, fmt.Errorf("delivery: %s cannot be replayed: %w", canonical, old.Faulty)
	}
	return old, items, nil
}

func (o *Org) insertReplay(ctx context.Context, tx *sqlstore.Tx, a acceptance) ([]*Receipt, error) {
	of := a.row.ReplayOf
	found, err := tx.LockDelivery(ctx, o.name, of)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, notFound("delivery", of)
	}
	if a.content.ID != "" {
		if _, found, err = spool.Lock(ctx, tx, o.name, a.content.ID); err != nil {
			return nil, err
		}
		if !found {
			return nil, notFound("the payload of delivery", of)
		}
	}
	receipts, err := o.insert(ctx, tx, []acceptance{a})
	if err != nil || receipts[0].Duplicate {
		return receipts, err
	}
	return receipts, tx.LinkReplay(ctx, o.name, receipts[0].ID, of)
}
