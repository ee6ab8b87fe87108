package delivery

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// Status is what became of a delivery so far.
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
	Test           bool   // a sample, see Destinations.Sample
	ReplayOf       string // the delivery that Replay repeated with it
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
	NextAttempt time.Time         // where it waits for one
	Progress    int64             // bytes that the other side has, while an attempt takes long: of some seconds ago
	EndedAt     time.Time         // where it has ended
	Reference   handler.Reference // the other side's own name for it, once delivered
	Removal     *Removal          // of what it wrote, where the destination keeps that for a time only
	Attempts    []Attempt         // in the order they happened, those before a retry by hand too
}

// Removal is what became of what a delivered item wrote, at a destination that keeps it for a time only.
type Removal struct {
	Outcome   handler.Removal // handler.NotRemoved while it is there
	RemovedAt time.Time
	TriedAt   time.Time // when it could last not be removed
	Problem   string    // and why
}

// Attempt is one try at an item, or an event in its place: a lost lease, a cancellation, a retry by hand (ready, requested),
// after which the numbers of a dead letter begin at 1 again. Number is 0 where it was none or is not charged.
type Attempt struct {
	Number      int
	State       queue.State  // that it left the item in
	Reason      queue.Reason // for that state
	Error       *AttemptError
	StartedAt   time.Time // zero where no attempt was begun
	EndedAt     time.Time // when it was recorded; StartedAt is so much earlier as the attempt took
	NextAttempt time.Time // where it left the item waiting
	Reference   handler.Reference
	Exchange    *handler.Exchange // request and response, where the protocol has them; credentials redacted
	Parts       []handler.Part
	Notes       map[string]string
}

// AttemptError is what went wrong in an attempt.
type AttemptError struct {
	Category   handler.Category
	StatusCode int    // of the protocol, if it has any
	Code       string // the other side's own
	Message    string
}

func (e *AttemptError) Error() string { return e.Message }

// Status returns what became of a delivery so far.
func (o *Org) Status(ctx context.Context, id string) (_ *Status, err error) {
	if err := o.authorize(ctx, access.ReadDeliveries); err != nil {
		return nil, err
	}
	defer o.watch(ctx, access.ReadDeliveries, &err)
	canonical, ok := canonicalID(id)
	if !ok {
		return nil, notFound("delivery", id)
	}
	var d *sqlstore.Delivery
	var pending []sqlstore.Item
	var attempts []sqlstore.Attempt
	var destinations []*sqlstore.Destination
	var written []sqlstore.Written
	var now time.Time
	err = o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		now = tx.Now
		if d, err = tx.Delivery(ctx, o.name, canonical); err != nil || d == nil {
			return err
		}
		// Items before attempts: one that ends in between is then seen twice, never not at all.
		if pending, err = tx.Items(ctx, o.name, canonical); err != nil {
			return err
		}
		if attempts, err = tx.Attempts(ctx, o.name, canonical); err != nil {
			return err
		}
		if destinations, err = tx.DestinationsOf(ctx, o.name, canonical); err != nil {
			return err
		}
		written, err = tx.WrittenOf(ctx, o.name, canonical)
		return err
	})
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, notFound("delivery", id)
	}
	s := &Status{
		ID: d.ID, Topic: d.Topic, Priority: Priority(d.Priority), IdempotencyKey: d.IdempotencyKey, CorrelationID: d.CorrelationID,
		Tags: d.Tags, Metadata: d.Metadata, Payload: d.Payload.Info, CreatedAt: d.CreatedAt, Deadline: d.Deadline,
		Items: items(d.ID, now, pending, attempts, destinations), ReplayOf: d.ReplayOf, DetailsURL: o.detailsURL(d.ID), Test: d.Options.Test,
	}
	for i := range s.Items {
		s.Items[i].Fallback = d.Fallback
	}
	for _, w := range written {
		for i := range s.Items {
			if s.Items[i].ID == engine.ItemID(d.ID, w.N) {
				s.Items[i].Removal = &Removal{Outcome: w.Removal, RemovedAt: w.RemovedAt, TriedAt: w.TriedAt, Problem: w.Problem}
			}
		}
	}
	states := make([]queue.State, len(s.Items))
	attempted := false
	for i, item := range s.Items {
		states[i] = item.State
		attempted = attempted || len(item.Attempts) > 0
	}
	s.State = queue.Summarize(states, attempted)
	return s, nil
}

// items puts together what is pending and what the history says. An item that is pending is not what the ends say that its
// history has from before a retry, but the one that it came to meanwhile, under the fence it has or a later one.
func items(delivery string, now time.Time, pending []sqlstore.Item, attempts []sqlstore.Attempt, destinations []*sqlstore.Destination) []Item {
	byNumber := map[int]*Item{}
	fences := map[int]int{} // of what is pending
	most := 0
	item := func(n int) *Item {
		if byNumber[n] == nil {
			byNumber[n] = &Item{ID: engine.ItemID(delivery, n)}
			most = max(most, n)
		}
		return byNumber[n]
	}
	for _, p := range pending {
		i := item(p.N)
		fences[p.N] = p.Fence
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
	for _, a := range attempts {
		i := item(a.N)
		i.Destination = a.Destination
		i.Attempts = append(i.Attempts, attempt(a))
		fence, waits := fences[a.N]
		switch {
		case a.State.Ended() && (!waits || a.Fence >= fence):
			i.State, i.Reason, i.EndedAt, i.Reference, i.NextAttempt, i.Progress = a.State, a.Reason, a.EndedAt, a.Reference, time.Time{}, 0
		case !waits: // retried since the queue was read, if nothing later follows
			i.State, i.Reason, i.EndedAt, i.Reference, i.NextAttempt = a.State, a.Reason, time.Time{}, handler.Reference{}, a.NextAt
		}
	}
	all := make([]Item, 0, len(byNumber))
	for n := 1; n <= most; n++ {
		i := byNumber[n]
		if i == nil {
			continue
		}
		for _, d := range destinations {
			if d.ID == i.Destination {
				i.Label, i.Type = d.Label, d.Type
			}
		}
		all = append(all, *i)
	}
	return all
}

// held is why all that waits for a destination is held.
func held(of *sqlstore.LaneInfo) queue.Reason {
	switch {
	case of.Paused:
		return queue.Paused
	case of.Disabled:
		return queue.Disabled
	}
	return queue.BreakerOpen
}

func attempt(a sqlstore.Attempt) Attempt {
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

// WaitFor returns the status of a delivery once all its items have ended, in whichever process. It returns ctx's error
// if that ends first, beside the status as it is then.
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

// Cancel ends what has not ended of a delivery. Items that wait end at once; an attempt that is under way is told to stop
// within ten seconds, and its item ends cancelled unless the attempt succeeds first. ErrEnded: nothing was left to cancel.
func (o *Org) Cancel(ctx context.Context, id string) (err error) {
	if err := o.authorize(ctx, access.OperateDeliveries); err != nil {
		return err
	}
	defer o.watch(ctx, access.OperateDeliveries, &err)
	canonical, ok := canonicalID(id)
	if !ok {
		return notFound("delivery", id)
	}
	found := false
	return o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		n, err := tx.CancelPending(ctx, o.name, canonical, 0, queue.Requested)
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
	}, sqlstore.Again)
}
