package delivery

import (
	"context"
	"slices"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// DeadLetters manages the items of an organization that ended dead: their retries were exhausted,
// the failure was permanent, or their deadline passed. An item is a dead letter until it is retried
// or purged; if it dies again, it becomes one again.
type DeadLetters struct{ o *Org }

// DeadLetters returns the organization's dead letters.
func (o *Org) DeadLetters() *DeadLetters { return &DeadLetters{o} }

// DeadLetter is an item that ended dead, with a summary of its delivery. Reason says why it died,
// EndedAt when.
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

// DeadFilter selects the dead letters that match every field that is set.
type DeadFilter struct {
	Destination string // its id; a deleted destination counts too
	Topic       string // of the delivery, matched exactly
	Reasons     []queue.Reason
	After       time.Time // that died then or later
	Before      time.Time // that died earlier

	// All selects all, and must be the only field. Retry and Purge refuse an empty filter.
	All    bool
	DryRun bool // Retry and Purge change nothing, and report what they would do
}

const (
	retryBatch = 500
	purgeBatch = 1000
)

// filter checks f. Calls that change dead letters need a filter that says which ones.
func (d *DeadLetters) filter(ctx context.Context, f DeadFilter, changes bool) (queuestore.DeadFilter, error) {
	action := access.ReadDeliveries
	if changes && !f.DryRun {
		action = access.OperateDeliveries
	}
	row := queuestore.DeadFilter{Topic: f.Topic, Reasons: f.Reasons, From: f.After, Before: f.Before}
	if err := d.o.authorize(ctx, action); err != nil {
		return row, err
	}
	p := &problems{}
	if f.Destination != "" {
		var ok bool
		if row.Destination, ok = sqlstore.CanonicalID(f.Destination); !ok {
			p.add("destination", "%q is not a destination id", f.Destination)
		}
	}
	if problem := badText(f.Topic); problem != "" {
		p.add("topic", "%s", problem)
	}
	if !f.After.IsZero() && !f.Before.IsZero() && !f.After.Before(f.Before) {
		p.add("after", "%s is not before %s", stamp(f.After), stamp(f.Before))
	}
	empty := f.Destination == "" && f.Topic == "" && len(f.Reasons) == 0 && f.After.IsZero() && f.Before.IsZero()
	switch {
	case f.All && !empty:
		p.add("all", "contradicts the other fields")
	case changes && empty && !f.All:
		p.add("", "selects every dead letter; say so with All")
	}
	if err := p.err("filter"); err != nil {
		return row, err
	}
	return row, d.foreign(ctx, action, row.Destination)
}

// foreign records a security event if a filter names a destination of another organization. Such a
// filter selects nothing.
func (d *DeadLetters) foreign(ctx context.Context, action access.Action, id string) error {
	if id == "" {
		return nil
	}
	var row *sqlstore.DestinationRow
	err := d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		row, err = tx.Destination(ctx, d.o.name, id)
		return err
	})
	if err == nil && row == nil {
		d.o.watchIn(ctx, nil, action, notFound("destination", id))
	}
	return err
}

// List returns the dead letters that the filter selects, 100 a page, beginning after the cursor; ""
// is the start. The newest deliveries come first, and within a delivery the later items.
func (d *DeadLetters) List(ctx context.Context, f DeadFilter, cursor string) (Page[DeadLetter], error) {
	var page Page[DeadLetter]
	filter, err := d.filter(ctx, f, false)
	if err != nil {
		return page, err
	}
	after, ok := parseCursor(cursor)
	if !ok {
		return page, badCursor("List")
	}
	var l listing
	err = d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		l, err = d.listing(ctx, tx, filter, after)
		return err
	})
	if err != nil {
		return page, err
	}
	page.Next = l.next
	past := l.past()
	for _, letter := range l.letters {
		of := l.deliveries[letter.Delivery]
		shown := DeadLetter{
			Delivery:      letter.Delivery,
			Topic:         of.Topic,
			Priority:      Priority(of.Priority),
			CorrelationID: of.CorrelationID,
			Payload:       of.Payload.Info,
			CreatedAt:     of.CreatedAt,
			Deadline:      of.Deadline,
			DetailsURL:    d.o.detailsURL(letter.Delivery),
		}
		if all := items(letter.Delivery, time.Time{}, nil, past[unfenced(letter.Key)], l.destinations); len(all) > 0 {
			shown.Item = all[0]
		}
		page.Items = append(page.Items, shown)
	}
	return page, nil
}

// listing is a page of dead letters with what is shown of their deliveries.
type listing struct {
	letters      []queuestore.DeadLetterRow
	next         string // the cursor of the next page
	deliveries   map[string]sqlstore.DeliveryRow
	attempts     []sqlstore.AttemptRow
	destinations []*sqlstore.DestinationRow
}

func (d *DeadLetters) listing(
	ctx context.Context, tx *sqlstore.Tx, f queuestore.DeadFilter, after *sqlstore.Key,
) (l listing, err error) {
	page := queuestore.DeadPage{After: after, Descending: true, Limit: pageSize + 1}
	l.letters, err = queuestore.DeadLetters(ctx, tx, d.o.name, f, page)
	if err != nil || len(l.letters) == 0 {
		return l, err
	}
	if len(l.letters) > pageSize {
		l.letters = l.letters[:pageSize]
		last := l.letters[pageSize-1]
		l.next = sqlstore.ItemID(last.Delivery, last.N)
	}
	var ids, of []string
	for _, letter := range l.letters {
		ids, of = append(ids, letter.Delivery), append(of, letter.Destination)
	}
	slices.Sort(of)
	ids, of = slices.Compact(ids), slices.Compact(of)
	if l.deliveries, err = tx.Summaries(ctx, d.o.name, ids); err != nil {
		return l, err
	}
	if l.attempts, err = tx.Attempts(ctx, d.o.name, ids...); err != nil {
		return l, err
	}
	l.destinations, err = tx.DestinationsByID(ctx, d.o.name, of)
	return l, err
}

// past is the history of each letter up to its end, by its key without a fence.
func (l *listing) past() map[sqlstore.Key][]sqlstore.AttemptRow {
	fences := map[sqlstore.Key]int{}
	for _, letter := range l.letters {
		fences[unfenced(letter.Key)] = letter.Fence
	}
	past := map[sqlstore.Key][]sqlstore.AttemptRow{}
	for _, a := range l.attempts {
		key := unfenced(a.Key)
		if fence, wanted := fences[key]; wanted && a.Fence <= fence {
			past[key] = append(past[key], a)
		}
	}
	return past
}

// unfenced is a key without its fence.
func unfenced(k sqlstore.Key) sqlstore.Key {
	k.Fence = 0
	return k
}

// parseCursor takes a cursor of List apart; "" is nil.
func parseCursor(cursor string) (*sqlstore.Key, bool) {
	if cursor == "" {
		return nil, true
	}
	delivery, n, ok := sqlstore.ParseItemID(cursor)
	return &sqlstore.Key{Delivery: delivery, N: n}, ok
}

// Count counts the dead letters that the filter selects.
func (d *DeadLetters) Count(ctx context.Context, f DeadFilter) (n int, err error) {
	filter, err := d.filter(ctx, f, false)
	if err != nil {
		return 0, err
	}
	err = d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		n, err = queuestore.CountDead(ctx, tx, d.o.name, filter)
		return err
	})
	return n, err
}

// Retried is what DeadLetters.Retry did, or would have done in a dry run.
type Retried struct {
	Items int // that are pending again
	// Refused are still dead letters: their deadline has passed, their destination was deleted or
	// their payload is gone.
	Refused int
}

// Retry retries the dead letters that the filter selects, as [Org.Retry] does, but skips those that
// cannot be retried. It goes from the oldest delivery to the newest in transactions of 500, and
// takes no letter that died after it began. If it ends with an error, the letters that it reports
// have been retried. An empty filter is a [*destination.ValidationError].
func (d *DeadLetters) Retry(ctx context.Context, f DeadFilter) (Retried, error) {
	var total Retried
	filter, err := d.filter(ctx, f, true)
	if err != nil {
		return total, err
	}
	page := queuestore.DeadPage{Limit: retryBatch, Lock: !f.DryRun}
	for {
		letters, revived, err := d.retryPage(ctx, &filter, page, f.DryRun)
		if err != nil {
			return total, err
		}
		total.Items += revived
		total.Refused += len(letters) - revived
		if revived > 0 && !f.DryRun {
			d.o.s.engine.Wake()
		}
		if len(letters) < page.Limit {
			return total, nil
		}
		page.After = &letters[len(letters)-1].Key
	}
}

// retryPage retries a page of dead letters, and returns it with how many of them it retried. It
// sets filter.Until if that is not set.
func (d *DeadLetters) retryPage(
	ctx context.Context, filter *queuestore.DeadFilter, page queuestore.DeadPage, dry bool,
) (letters []queuestore.DeadLetterRow, revived int, err error) {
	var revive []queuestore.DeadLetterRow
	choose := func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		if filter.Until.IsZero() {
			filter.Until = tx.Now
		}
		if letters, err = queuestore.DeadLetters(ctx, tx, d.o.name, *filter, page); err != nil {
			return err
		}
		revive = nil
		for _, l := range letters {
			if refusal(l, tx.Now) == "" {
				revive = append(revive, l)
			}
		}
		return nil
	}
	if dry {
		err = d.o.s.store.Read(ctx, choose)
		return letters, len(revive), err
	}
	err = d.o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		if err := choose(ctx, tx); err != nil {
			return err
		}
		return d.o.s.store.Revive(ctx, tx, revive)
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		if len(revive) == 0 {
			return true, nil
		}
		return queuestore.Recorded(ctx, tx, revive[0].Returned())
	}})
	return letters, len(revive), err
}

// Purge gives up the dead letters that the filter selects, and returns how many: they are no longer
// listed or retried. In a dry run it only counts them. Their deliveries keep their history and can
// be replayed. It goes in transactions of 1,000, and takes no letter that died after it began. If
// it ends with an error, the number that it returns has been purged. An empty filter is a
// [*destination.ValidationError].
func (d *DeadLetters) Purge(ctx context.Context, f DeadFilter) (int, error) {
	filter, err := d.filter(ctx, f, true)
	if err != nil {
		return 0, err
	}
	if f.DryRun {
		f.All, f.DryRun = false, false
		return d.Count(ctx, f)
	}
	page := queuestore.DeadPage{Limit: purgeBatch, Lock: true}
	for total := 0; ; {
		letters, purged, err := d.purgePage(ctx, &filter, page)
		if err != nil {
			return total, err
		}
		if total += purged; len(letters) < page.Limit {
			return total, nil
		}
		page.After = &letters[len(letters)-1].Key
	}
}

// purgePage purges a page of dead letters, and returns it with how many of them it purged. It sets
// filter.Until if that is not set.
func (d *DeadLetters) purgePage(
	ctx context.Context, filter *queuestore.DeadFilter, page queuestore.DeadPage,
) (letters []queuestore.DeadLetterRow, purged int, err error) {
	err = d.o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		if filter.Until.IsZero() {
			filter.Until = tx.Now
		}
		purged = 0
		if letters, err = queuestore.DeadLetters(ctx, tx, d.o.name, *filter, page); err != nil || len(letters) == 0 {
			return err
		}
		purged, err = queuestore.PurgeDead(ctx, tx, d.o.name, *filter, page.After, letters[len(letters)-1].Key)
		return err
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		if len(letters) == 0 {
			return true, nil
		}
		next := queuestore.DeadPage{After: page.After, Limit: 1}
		first, err := queuestore.DeadLetters(ctx, tx, d.o.name, *filter, next)
		return len(first) == 0 || unfenced(first[0].Key) != unfenced(letters[0].Key), err
	}})
	return letters, purged, err
}
