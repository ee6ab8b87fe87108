package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// mostItems is more than a delivery can have.
const mostItems = 1 << 16

// Retry has items of a delivery attempted now: the same items, under the same message ids. A dead letter becomes pending
// again, with all the attempts that its policy allows, and its history goes on; an item that waits for its next retry is
// attempted now, and has the attempts left that it had. It applies to all such items or, with destinations, to theirs;
// those that are pending otherwise (ready, under way, before their NotBefore) stay as they are.
//
// What cannot be retried is ErrNotRetryable, and then nothing is: items that were delivered, cancelled or purged, where they
// are named or nothing else is left; dead letters whose deadline has passed, for that is their promise, whose destination
// was deleted or whose payload is gone. Replay has a way around each but the last.
func (o *Org) Retry(ctx context.Context, id string, destinations ...string) (err error) {
	if err := o.authorize(ctx, access.OperateDeliveries); err != nil {
		return err
	}
	defer o.watch(ctx, access.OperateDeliveries, &err)
	canonical, ok := canonicalID(id)
	if !ok {
		return notFound("delivery", id)
	}
	var named []string
	for _, d := range destinations {
		c, ok := canonicalID(d)
		if !ok {
			return notFound("destination", d)
		}
		named = append(named, c)
	}
	var records []sqlstore.Key // of what the last run of the transaction did
	err = o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		records, err = o.retry(ctx, tx, canonical, named)
		return err
	}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		if len(records) == 0 {
			return true, nil
		}
		return tx.Recorded(ctx, records[0])
	})
	if err == nil {
		o.s.engine.Wake()
	}
	return err
}

// retry returns the keys of the records that it makes.
func (o *Org) retry(ctx context.Context, tx *sqlstore.Tx, id string, named []string) ([]sqlstore.Key, error) {
	// The waiting items are locked before the dead letters are read: none can become one in between.
	waiting, err := o.waiting(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	letters, err := tx.DeadLetters(ctx, o.name, sqlstore.DeadFilter{Delivery: id}, sqlstore.DeadPage{Limit: mostItems, Lock: true})
	if err != nil {
		return nil, err
	}
	chosen := func(d string) bool { return len(named) == 0 || slices.Contains(named, d) }
	var errs []error
	var found []string
	var revive []sqlstore.DeadLetter
	var hasten []*sqlstore.Outcome
	var records []sqlstore.Key
	for _, l := range letters {
		if !chosen(l.Destination) {
			continue
		}
		found = append(found, l.Destination)
		if why := refusal(l, tx.Now); why != "" {
			errs = append(errs, fmt.Errorf("%w: item %s: %s", ErrNotRetryable, engine.ItemID(id, l.N), why))
		}
		revive = append(revive, l)
		records = append(records, l.Returned())
	}
	for _, w := range waiting {
		if !chosen(w.Destination) {
			continue
		}
		found = append(found, w.Destination)
		if w.State != queue.Scheduled || w.Attempt == 0 {
			continue
		}
		out := &sqlstore.Outcome{No: sqlstore.DestinationOf(w.Lane)}
		out.Key, out.Destination, out.State, out.Reason, out.Took = w.Key, w.Destination, queue.Ready, queue.Requested, sqlstore.NotBegun
		hasten = append(hasten, out)
		records = append(records, w.Key)
	}
	var left []string
	for _, d := range named {
		if !slices.Contains(found, d) {
			left = append(left, d)
		}
	}
	if len(left) > 0 || len(found) == 0 {
		errs = append(errs, o.explainRest(ctx, tx, id, left))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(hasten) > 0 {
		if _, err := tx.Finish(ctx, hasten); err != nil {
			return nil, err
		}
	}
	return records, tx.Revive(ctx, revive)
}

// waiting locks and lists the pending items of a delivery.
func (o *Org) waiting(ctx context.Context, tx *sqlstore.Tx, id string) ([]sqlstore.Item, error) {
	rows, err := o.s.store.Pending(ctx, tx, o.name, id, 0, mostItems)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	nos := make([]int64, len(rows))
	for i, r := range rows {
		nos[i] = sqlstore.DestinationOf(r.Lane)
	}
	infos, err := tx.LaneInfos(ctx, nos)
	if err != nil {
		return nil, err
	}
	items := make([]sqlstore.Item, len(rows))
	for i, r := range rows {
		items[i] = sqlstore.Item{Claimed: r, Destination: infos[nos[i]].ID}
	}
	return items, nil
}

// refusal says why a dead letter cannot be retried, "" if it can.
func refusal(l sqlstore.DeadLetter, now time.Time) string {
	switch {
	case l.Deleted:
		return "its destination was deleted"
	case l.Lost:
		return "its payload is gone"
	case !l.Deadline.IsZero() && !l.Deadline.After(now):
		return fmt.Sprintf("its deadline, %s, has passed; Replay can give it another", l.Deadline.Format(time.RFC3339))
	}
	return ""
}

// explainRest says why there is nothing to retry of a delivery or, with destinations, of those items. It is nil where
// another call has retried them since they were looked for.
func (o *Org) explainRest(ctx context.Context, tx *sqlstore.Tx, id string, destinations []string) error {
	d, err := tx.Delivery(ctx, o.name, id)
	if err != nil {
		return err
	}
	if d == nil {
		return notFound("delivery", id)
	}
	pending, err := tx.Items(ctx, o.name, id)
	if err != nil {
		return err
	}
	ends, err := tx.Ends(ctx, o.name, id)
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
		if slices.ContainsFunc(pending, func(i sqlstore.Item) bool { return i.Destination == name }) {
			continue
		}
		at := slices.IndexFunc(ends, func(e sqlstore.End) bool { return e.Destination == name })
		if at < 0 {
			errs = append(errs, notFound("destination", name))
			continue
		}
		why := "it was " + ends[at].State.String()
		if ends[at].State == queue.Dead {
			why = "it was purged; Replay delivers it anew"
		}
		errs = append(errs, fmt.Errorf("%w: item %s: %s", ErrNotRetryable, engine.ItemID(id, ends[at].N), why))
	}
	return errors.Join(errs...)
}
