package delivery

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// Status says what has become of a delivery so far.
type Status struct {
	ID             string
	State          queue.Summary // derived from the items
	Topic          string
	Priority       Priority
	IdempotencyKey string
	CorrelationID  string
	Tags           []string
	Metadata       map[string]string
	Payload        payload.Info
	CreatedAt      time.Time
	Deadline       time.Time
	Items          []Item
	Test           bool   // it is a sample, see Destinations.Sample
	ReplayOf       string // the delivery that it replays
	DetailsURL     string // by WithDetailsURL
}

// Item is a delivery for one destination.
type Item struct {
	ID          string
	Destination string
	Label, Type string // of the destination
	Fallback    bool   // it stands in for the primary defaults
	State       queue.State
	Reason      queue.Reason      // why it waits or ended
	NextAttempt time.Time         // zero unless it waits for one
	Progress    int64             // bytes that the other side had some seconds ago, during a long attempt
	EndedAt     time.Time         // zero until it has ended
	Reference   handler.Reference // the other side's own name for it, once delivered
	Removal     *Removal          // of what it wrote; nil unless the destination keeps that for a limited time
	Attempts    []Attempt         // in the order they happened, also those before a retry by hand
}

// Removal says what has become of an object that a delivered item wrote, at a destination that
// keeps objects for a limited time.
type Removal struct {
	Outcome   handler.Removal // handler.NotRemoved while it is there
	RemovedAt time.Time
	TriedAt   time.Time // when removing it last failed
	Problem   string    // why it failed
}

// Attempt is one try at an item, or an event in its place: a lost lease, a cancellation, or a retry
// by hand (ready, requested), after which the numbers of a dead letter begin at 1 again. Number is
// 0 for an event and for an attempt that is not charged.
type Attempt struct {
	Number      int
	State       queue.State  // of the item afterwards
	Reason      queue.Reason // for that state
	Error       *AttemptError
	StartedAt   time.Time // EndedAt minus the attempt's duration; zero if none was begun
	EndedAt     time.Time // when it was recorded
	NextAttempt time.Time // zero unless the item was left waiting
	Reference   handler.Reference
	Exchange    *handler.Exchange // request and response, if the protocol has them; credentials are redacted
	Parts       []handler.Part
	Notes       map[string]string
}

// AttemptError says what went wrong in an attempt.
type AttemptError struct {
	Category   handler.Category
	StatusCode int    // of the protocol, if it has any
	Code       string // the other side's own error code
	Message    string
}

func (e *AttemptError) Error() string { return e.Message }

// Status says what has become of a delivery so far.
func (o *Org) Status(ctx context.Context, id string) (_ *Status, err error) {
	if err := o.authorize(ctx, access.ReadDeliveries); err != nil {
		return nil, err
	}
	defer o.watch(ctx, access.ReadDeliveries, &err)
	canonical, ok := sqlstore.CanonicalID(id)
	if !ok {
		return nil, notFound("delivery", id)
	}
	var h history
	err = o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		h, err = o.history(ctx, tx, canonical)
		return err
	})
	if err != nil {
		return nil, err
	}
	if h.delivery == nil {
		return nil, notFound("delivery", id)
	}
	return o.status(h), nil
}

// history is everything that is stored of a delivery.
type history struct {
	delivery     *sqlstore.DeliveryRow // nil: there is none
	pending      []queuestore.ItemRow
	attempts     []sqlstore.AttemptRow
	destinations []*sqlstore.DestinationRow
	written      []sqlstore.Written
	now          time.Time
}

func (o *Org) history(ctx context.Context, tx *sqlstore.Tx, id string) (h history, err error) {
	h.now = tx.Now
	if h.delivery, err = tx.Delivery(ctx, o.name, id); err != nil || h.delivery == nil {
		return h, err
	}
	// Items before attempts: an item that ends in between is then seen twice rather than not at
	// all.
	if h.pending, err = queuestore.Items(ctx, tx, o.name, id); err != nil {
		return h, err
	}
	if h.attempts, err = tx.Attempts(ctx, o.name, id); err != nil {
		return h, err
	}
	if h.destinations, err = tx.DestinationsOf(ctx, o.name, id); err != nil {
		return h, err
	}
	h.written, err = tx.WrittenOf(ctx, o.name, id)
	return h, err
}

func (o *Org) status(h history) *Status {
	d := h.delivery
	s := &Status{
		ID: d.ID, Topic: d.Topic, Priority: Priority(d.Priority), IdempotencyKey: d.IdempotencyKey,
		CorrelationID: d.CorrelationID, Tags: d.Tags, Metadata: d.Metadata, Payload: d.Payload.Info,
		CreatedAt: d.CreatedAt, Deadline: d.Deadline, Items: items(d.ID, h.now, h.pending, h.attempts, h.destinations),
		ReplayOf: d.ReplayOf, DetailsURL: o.detailsURL(d.ID), Test: d.Options.Test,
	}
	states := make([]queue.State, len(s.Items))
	attempted := false
	for i := range s.Items {
		item := &s.Items[i]
		item.Fallback = d.Fallback
		item.Removal = removal(h.written, item.ID)
		states[i] = item.State
		attempted = attempted || len(item.Attempts) > 0
	}
	s.State = queue.Summarize(states, attempted)
	return s
}

// removal is what became of what an item wrote, nil if that stays.
func removal(written []sqlstore.Written, item string) *Removal {
	for _, w := range written {
		if item == sqlstore.ItemID(w.Delivery, w.N) {
			return &Removal{Outcome: w.Removal, RemovedAt: w.RemovedAt, TriedAt: w.TriedAt, Problem: w.Problem}
		}
	}
	return nil
}

// items puts together what is pending and what the history says. A pending item that was retried by
// hand has an earlier end in its history, which does not count: only an end under the fence that
// the item has, or a later one, happened since.
func items(
	delivery string, now time.Time, pending []queuestore.ItemRow, attempts []sqlstore.AttemptRow,
	destinations []*sqlstore.DestinationRow,
) []Item {
	byNumber := map[int]*Item{}
	fences := map[int]int{} // of pending items
	last := 0
	item := func(n int) *Item {
		if byNumber[n] == nil {
			byNumber[n] = &Item{ID: sqlstore.ItemID(delivery, n)}
			last = max(last, n)
		}
		return byNumber[n]
	}
	for i := range pending {
		p := &pending[i]
		fences[p.N] = p.Fence
		item(p.N).wait(p, now)
	}
	for _, a := range attempts {
		fence, waits := fences[a.N]
		item(a.N).record(a, waits, fence)
	}
	all := make([]Item, 0, len(byNumber))
	for n := 1; n <= last; n++ {
		if i := byNumber[n]; i != nil {
			i.name(destinations)
			all = append(all, *i)
		}
	}
	return all
}

// wait notes that an item is pending.
func (i *Item) wait(p *queuestore.ItemRow, now time.Time) {
	i.Destination, i.State, i.Progress = p.Destination, p.State, p.Progress
	switch {
	case p.State == queue.Processing:
	case p.Of.Held(now):
		i.Reason = held(&p.Of)
	case p.State == queue.Scheduled && p.Attempt > 0:
		i.Reason = queue.Backoff
	case p.State == queue.Scheduled:
		i.Reason = queue.NotBefore
	}
	if p.State == queue.Scheduled {
		i.NextAttempt = p.RunAt
	}
}

// record adds an attempt; waits and fence are of the item, if it is pending.
func (i *Item) record(a sqlstore.AttemptRow, waits bool, fence int) {
	i.Destination = a.Destination
	i.Attempts = append(i.Attempts, attempt(a))
	switch {
	case a.State.Ended() && (!waits || a.Fence >= fence):
		i.State, i.Reason, i.EndedAt, i.Reference = a.State, a.Reason, a.EndedAt, a.Reference
		i.NextAttempt, i.Progress = time.Time{}, 0
	case !waits: // retried since the queue was read, if nothing later follows
		i.State, i.Reason, i.EndedAt, i.Reference = a.State, a.Reason, time.Time{}, handler.Reference{}
		i.NextAttempt = a.NextAt
	}
}

func (i *Item) name(destinations []*sqlstore.DestinationRow) {
	for _, d := range destinations {
		if d.ID == i.Destination {
			i.Label, i.Type = d.Label, d.Type
		}
	}
}

// held is why the items of a destination are held.
func held(of *queuestore.LaneInfo) queue.Reason {
	switch {
	case of.Paused:
		return queue.Paused
	case of.Disabled:
		return queue.Disabled
	}
	return queue.BreakerOpen
}

func attempt(a sqlstore.AttemptRow) Attempt {
	v := Attempt{
		Number: a.Number, State: a.State, Reason: a.Reason, EndedAt: a.EndedAt, NextAttempt: a.NextAt,
		Reference: a.Reference, Exchange: a.Detail.Exchange, Parts: a.Detail.Parts, Notes: a.Detail.Notes,
	}
	if a.Took != sqlstore.NotBegun {
		v.StartedAt = a.EndedAt.Add(-a.Took)
	}
	if f := a.Failure; f != nil {
		v.Error = &AttemptError{Category: f.Category, StatusCode: f.StatusCode, Code: f.Code, Message: f.Text}
	}
	return v
}

const (
	firstLook   = 50 * time.Millisecond
	longestLook = time.Second
)

// WaitFor returns the status of a delivery once every item has ended, in any process. If ctx ends
// first, it returns the current status and ctx's error.
func (o *Org) WaitFor(ctx context.Context, id string) (*Status, error) {
	for pause := firstLook; ; pause = min(2*pause, longestLook) {
		ended := o.s.engine.Ended()
		s, err := o.Status(ctx, id)
		if err != nil || s.State.Ended() {
			return s, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return s, ctx.Err()
		case <-ended:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// Cancel ends the items of a delivery that have not ended. Waiting items end at once. An attempt
// under way is told to stop within ten seconds, and its item ends cancelled unless the attempt
// succeeds first. [ErrEnded] means that nothing was left to cancel.
func (o *Org) Cancel(ctx context.Context, id string) (err error) {
	if err := o.authorize(ctx, access.OperateDeliveries); err != nil {
		return err
	}
	defer o.watch(ctx, access.OperateDeliveries, &err)
	canonical, ok := sqlstore.CanonicalID(id)
	if !ok {
		return notFound("delivery", id)
	}
	found := false
	return o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		n, err := o.s.store.CancelPending(ctx, tx, o.name, canonical, 0, queue.Requested)
		if err != nil || n > 0 || found { // found before: that took effect
			found = found || n > 0
			return err
		}
		d, err := tx.Delivery(ctx, o.name, canonical)
		switch {
		case err != nil:
			return err
		case d == nil:
			return notFound("delivery", id)
		}
		return ErrEnded
	}, Committed: sqlstore.Again})
}
