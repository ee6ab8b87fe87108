package delivery

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// DeadLetters are the items of an organization that ended dead: its retries exhausted, a failure that none can mend, its
// deadline passed. An item is one until it is retried or purged; if it dies again it is one again.
type DeadLetters struct{ o *Org }

// DeadLetters returns the organization's dead letters.
func (o *Org) DeadLetters() *DeadLetters { return &DeadLetters{o} }

// DeadLetter is an item that ended dead, with what there is to know of its delivery. Reason says why, EndedAt when.
type DeadLetter struct {
	Item
	Delivery      string // its id
	Topic         string
	Priority      Priority // the delivery's
	CorrelationID string
	Payload       payload.Info
	CreatedAt     time.Time
	Deadline      time.Time
	DetailsURL    string // by WithDetailsURL
}

// DeadFilter selects dead letters: those that fit all fields that are set.
type DeadFilter struct {
	Destination string // by id, of a deleted one too
	Topic       string // of the delivery, exactly
	Reasons     []queue.Reason
	After       time.Time // died then or later
	Before      time.Time // died earlier

	All    bool // selects all, and must be the only field: Retry and Purge refuse a filter that says nothing
	DryRun bool // Retry and Purge change nothing, and say what they would do
}

const (
	retryBatch = 500
	purgeBatch = 1000
)

// filter checks f. What changes dead letters demands that it says something.
func (d *DeadLetters) filter(ctx context.Context, f DeadFilter, changes bool) (sqlstore.DeadFilter, error) {
	action := access.ReadDeliveries
	if changes && !f.DryRun {
		action = access.OperateDeliveries
	}
	if err := d.o.authorize(ctx, action); err != nil {
		return sqlstore.DeadFilter{}, err
	}
	var errs []error
	invalid := func(path, format string, args ...any) {
		errs = append(errs, destination.Invalid(path, format, args...))
	}
	row := sqlstore.DeadFilter{Topic: f.Topic, Reasons: f.Reasons, From: f.After, Before: f.Before}
	if f.Destination != "" {
		var ok bool
		if row.Destination, ok = canonicalID(f.Destination); !ok {
			invalid("destination", "%q is no destination id", f.Destination)
		}
	}
	if problem := badText(f.Topic); problem != "" {
		invalid("topic", "%s", problem)
	}
	if !f.After.IsZero() && !f.Before.IsZero() && !f.After.Before(f.Before) {
		invalid("after", "%s is not before %s", f.After.UTC().Format(time.RFC3339), f.Before.UTC().Format(time.RFC3339))
	}
	empty := f.Destination == "" && f.Topic == "" && len(f.Reasons) == 0 && f.After.IsZero() && f.Before.IsZero()
	switch {
	case f.All && !empty:
		invalid("all", "contradicts the other fields")
	case changes && empty && !f.All:
		invalid("", "selects every dead letter; say so with All")
	}
	if err := destination.NewValidationError("filter", errors.Join(errs...)); err != nil {
		return row, err
	}
	return row, d.foreign(ctx, action, row.Destination)
}

// foreign notes where a filter names a destination of another organization's: it selects nothing.
func (d *DeadLetters) foreign(ctx context.Context, action access.Action, id string) error {
	if id == "" {
		return nil
	}
	var row *sqlstore.Destination
	err := d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		row, err = tx.Destination(ctx, d.o.name, id)
		return err
	})
	if err == nil && row == nil {
		d.o.watchIn(ctx, nil, action, notFound("destination", id))
	}
	return err
}

// List returns the dead letters that the filter selects, 100 a page, from after the cursor; "" is the start. Those of the
// newest deliveries come first, and of one delivery the later items.
func (d *DeadLetters) List(ctx context.Context, f DeadFilter, cursor string) (Page[DeadLetter], error) {
	var page Page[DeadLetter]
	filter, err := d.filter(ctx, f, false)
	if err != nil {
		return page, err
	}
	after, ok := parseItemID(cursor)
	if !ok {
		return page, destination.NewValidationError("list", destination.Invalid("cursor", "is not one that List returned"))
	}
	var letters []sqlstore.DeadLetter
	var attempts []sqlstore.Attempt
	var destinations []*sqlstore.Destination
	var deliveries map[string]sqlstore.Delivery
	err = d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		letters, err = tx.DeadLetters(ctx, d.o.name, filter, sqlstore.DeadPage{After: after, Descending: true, Limit: pageSize + 1})
		if err != nil || len(letters) == 0 {
			return err
		}
		if len(letters) > pageSize {
			letters = letters[:pageSize]
			page.Next = engine.ItemID(letters[pageSize-1].Delivery, letters[pageSize-1].N)
		}
		var ids, of []string
		for _, l := range letters {
			ids, of = append(ids, l.Delivery), append(of, l.Destination)
		}
		slices.Sort(of)
		ids, of = slices.Compact(ids), slices.Compact(of)
		if deliveries, err = tx.Summaries(ctx, d.o.name, ids); err != nil {
			return err
		}
		if attempts, err = tx.Attempts(ctx, d.o.name, ids...); err != nil {
			return err
		}
		destinations, err = tx.DestinationsByID(ctx, d.o.name, of)
		return err
	})
	if err != nil {
		return Page[DeadLetter]{}, err
	}
	history := map[sqlstore.Key][]sqlstore.Attempt{} // of each letter, up to its end
	for _, l := range letters {
		history[item(l.Key)] = nil
	}
	for _, a := range attempts {
		if before, wanted := history[item(a.Key)]; wanted {
			history[item(a.Key)] = append(before, a)
		}
	}
	for _, l := range letters {
		past := slices.DeleteFunc(history[item(l.Key)], func(a sqlstore.Attempt) bool { return a.Fence > l.Fence })
		of := deliveries[l.Delivery]
		letter := DeadLetter{
			Delivery: l.Delivery, Topic: of.Topic, Priority: Priority(of.Priority), CorrelationID: of.CorrelationID,
			Payload: of.Payload.Info, CreatedAt: of.CreatedAt, Deadline: of.Deadline, DetailsURL: d.o.detailsURL(l.Delivery),
		}
		if all := items(l.Delivery, time.Time{}, nil, past, destinations); len(all) > 0 {
			letter.Item = all[0]
		}
		page.Items = append(page.Items, letter)
	}
	return page, nil
}

// item is a key without its fence.
func item(k sqlstore.Key) sqlstore.Key {
	k.Fence = 0
	return k
}

// parseItemID takes an item's id apart; "" is nil.
func parseItemID(id string) (*sqlstore.Key, bool) {
	if id == "" {
		return nil, true
	}
	at := strings.LastIndexByte(id, '-')
	if at < 0 {
		return nil, false
	}
	delivery, ok := canonicalID(id[:at])
	n, err := strconv.ParseInt(id[at+1:], 10, 16)
	return &sqlstore.Key{Delivery: delivery, N: int(n)}, ok && err == nil && n > 0
}

// Count counts the dead letters that the filter selects.
func (d *DeadLetters) Count(ctx context.Context, f DeadFilter) (n int, err error) {
	filter, err := d.filter(ctx, f, false)
	if err != nil {
		return 0, err
	}
	err = d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		n, err = tx.CountDead(ctx, d.o.name, filter)
		return err
	})
	return n, err
}

// Retried is what DeadLetters.Retry did, or in a dry run would have done.
type Retried struct {
	Items   int // pending again
	Refused int // still dead letters: the deadline has passed, the destination was deleted or the payload is gone
}

// Retry retries the dead letters that the filter selects, as Org.Retry does, but passes over those that cannot be. It goes
// from the oldest delivery to the newest in transactions of 500, and takes no letter that died after it began. When it ends
// with an error, what it reports is done and stays so. A filter that selects nothing in particular is a
// *destination.ValidationError.
func (d *DeadLetters) Retry(ctx context.Context, f DeadFilter) (Retried, error) {
	var total Retried
	filter, err := d.filter(ctx, f, true)
	if err != nil {
		return total, err
	}
	page := sqlstore.DeadPage{Limit: retryBatch, Lock: !f.DryRun}
	for {
		var letters, revive []sqlstore.DeadLetter
		step := func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			if filter.Until.IsZero() {
				filter.Until = tx.Now
			}
			revive = nil
			if letters, err = tx.DeadLetters(ctx, d.o.name, filter, page); err != nil {
				return err
			}
			for _, l := range letters {
				if refusal(l, tx.Now) == "" {
					revive = append(revive, l)
				}
			}
			if f.DryRun {
				return nil
			}
			return tx.Revive(ctx, revive)
		}
		if f.DryRun {
			err = d.o.s.store.Read(ctx, step)
		} else {
			err = d.o.s.store.Write(ctx, step, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
				if len(revive) == 0 {
					return true, nil
				}
				return tx.Recorded(ctx, revive[0].Returned())
			})
		}
		if err != nil {
			return total, err
		}
		total.Items += len(revive)
		total.Refused += len(letters) - len(revive)
		if len(revive) > 0 && !f.DryRun {
			d.o.s.engine.Wake()
		}
		if len(letters) < page.Limit {
			return total, nil
		}
		page.After = &letters[len(letters)-1].Key
	}
}

// Purge gives the dead letters that the filter selects up, and returns how many, or in a dry run would have been: they are
// listed and retried no more. Their deliveries stay what they are, with all of their history, and can be replayed. It goes
// in transactions of 1,000, and takes no letter that died after it began; when it ends with an error, what it reports is
// done. A filter that selects nothing in particular is a *destination.ValidationError.
func (d *DeadLetters) Purge(ctx context.Context, f DeadFilter) (int, error) {
	filter, err := d.filter(ctx, f, true)
	if err != nil {
		return 0, err
	}
	if f.DryRun {
		f.All, f.DryRun = false, false
		return d.Count(ctx, f)
	}
	page := sqlstore.DeadPage{Limit: purgeBatch, Lock: true}
	for total := 0; ; {
		var letters []sqlstore.DeadLetter
		purged := 0
		err := d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			if filter.Until.IsZero() {
				filter.Until = tx.Now
			}
			if letters, err = tx.DeadLetters(ctx, d.o.name, filter, page); err != nil || len(letters) == 0 {
				return err
			}
			purged, err = tx.PurgeDead(ctx, d.o.name, filter, page.After, letters[len(letters)-1].Key)
			return err
		}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			if len(letters) == 0 {
				return true, nil
			}
			first, err := tx.DeadLetters(ctx, d.o.name, filter, sqlstore.DeadPage{After: page.After, Limit: 1})
			return len(first) == 0 || item(first[0].Key) != item(letters[0].Key), err
		})
		if err != nil {
			return total, err
		}
		if total += purged; len(letters) < page.Limit {
			return total, nil
		}
		page.After = &letters[len(letters)-1].Key
	}
}
