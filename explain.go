package delivery

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// Explain says for each item of a delivery why it has not been delivered and when it is attempted
// next: in words for people, and as a queue.Reason for programs. It goes by the limits, breakers
// and pauses of this moment, which may have changed by the time it is read.
func (o *Org) Explain(ctx context.Context, id string) ([]queue.Explanation, error) {
	status, err := o.Status(ctx, id)
	if err != nil {
		return nil, err
	}
	all := make([]queue.Explanation, len(status.Items))
	at := map[string]int{}
	for i, item := range status.Items {
		all[i] = queue.Explanation{
			Item:        item.ID,
			Destination: item.Destination,
			State:       item.State,
			Reason:      item.Reason,
			Next:        item.NextAttempt,
			Text:        ended(&item),
		}
		at[item.ID] = i
	}
	err = o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		pending, err := queuestore.Items(ctx, tx, o.name, status.ID)
		if err != nil || len(pending) == 0 {
			return err
		}
		handled, err := queuestore.Workers(ctx, tx, tx.Now.Add(-engine.Seen))
		if err != nil {
			return err
		}
		for i := range pending {
			p := &pending[i]
			place, known := at[sqlstore.ItemID(status.ID, p.N)]
			if !known || all[place].State.Ended() {
				continue
			}
			if err := o.explain(ctx, tx, p, &status.Items[place], handled, &all[place]); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

// explain says why an item is pending.
func (o *Org) explain(
	ctx context.Context, tx *sqlstore.Tx, p *queuestore.ItemRow, item *Item, handled map[string]bool,
	x *queue.Explanation,
) error {
	d, err := tx.Destination(ctx, o.name, p.Destination)
	if err != nil || d == nil {
		return err
	}
	x.State = p.State
	switch {
	case p.State == queue.Processing:
		x.Reason, x.Text = queue.None, fmt.Sprintf("attempt %d is under way", p.Attempt+1)
		return nil
	case p.Of.Held(tx.Now):
		x.Reason, x.Next = held(&p.Of), p.Of.ProbeAt
		return o.explainHeld(ctx, tx, p, d, x)
	case p.State == queue.Scheduled:
		x.Next = p.RunAt
		if x.Reason = queue.NotBefore; p.Attempt > 0 {
			x.Reason = queue.Backoff
		}
		x.Text = fmt.Sprintf("attempt %d is due at %s", p.Attempt+1, stamp(p.RunAt)) + lastFailure(item)
		return nil
	}
	why, err := o.s.engine.Why(ctx, tx, p, d, handled)
	if err != nil {
		return err
	}
	x.Reason, x.Next = why.Reason, why.Next
	x.Text = waitsFor(why, d.Type) + ahead(why.Ahead) + lastFailure(item)
	return nil
}

// waitsFor says what an item that is ready waits for.
func waitsFor(why engine.Why, typ string) string {
	switch why.Reason {
	case queue.NoHandler:
		return fmt.Sprintf("no process that was seen in the last %s attempts items of type %q; "+
			"is one running that was given delivery.WithHandler(%q, ...)?", engine.Seen, typ, typ)
	case queue.Probing:
		return fmt.Sprintf("the destination has failed and is being tried with %d items at a time", why.Max)
	case queue.InOrder:
		return "the destination takes items in strict order, and an earlier one has not ended"
	case queue.ConcurrencyLimit:
		return fmt.Sprintf("the destination takes %d attempts at a time", why.Max)
	case queue.OrganizationBusy:
		return fmt.Sprintf("the organization may have %d attempts under way, and has", why.Max)
	case queue.RateLimit:
		return fmt.Sprintf("the destination takes %v attempts a second", why.Rate)
	case queue.CatchingUp:
		return fmt.Sprintf("the destination catches up: what was held goes out at %v a second", why.Rate)
	}
	return "it is attempted as soon as a worker is free"
}

// ahead says how many items are before one.
func ahead(n int) string {
	switch {
	case n == engine.MaxAhead:
		return fmt.Sprintf("; %d items or more are before it", n)
	case n == 1:
		return "; one item is before it"
	case n > 1:
		return fmt.Sprintf("; %d items are before it", n)
	}
	return ""
}

// explainHeld puts into words why the items of a destination are held.
func (o *Org) explainHeld(
	ctx context.Context, tx *sqlstore.Tx, p *queuestore.ItemRow, d *sqlstore.DestinationRow, x *queue.Explanation,
) error {
	switch x.Reason {
	case queue.Paused:
		own, everyone, err := tx.Paused(ctx, o.name)
		if err != nil {
			return err
		}
		var by []string
		for _, pause := range []struct {
			of string
			at time.Time
		}{{"the destination", d.PausedAt}, {"the organization", own}, {"the whole queue", everyone}} {
			if !pause.at.IsZero() {
				by = append(by, pause.of+" since "+stamp(pause.at))
			}
		}
		x.Text, x.Next = "paused: "+strings.Join(by, ", "), time.Time{}
	case queue.Disabled:
		x.Text = "its destination is disabled"
		if d.DisabledReason != "" {
			x.Text += ": " + d.DisabledReason
		}
		if !p.Of.ProbeAt.IsZero() {
			x.Text += "; it is tried again at " + stamp(p.Of.ProbeAt)
		}
	default:
		x.Text = fmt.Sprintf("the breaker of its destination is open after %d failures in a row", p.Of.Failures)
		if p.Of.ProbeAt.IsZero() {
			x.Text += "; it stays so until it is closed by hand"
		} else {
			x.Text += "; probes begin at " + stamp(p.Of.ProbeAt)
		}
	}
	return nil
}

// ended says how an item has ended, "" if it has not.
func ended(item *Item) string {
	switch item.State {
	case queue.Delivered:
		return "delivered at " + stamp(item.EndedAt)
	case queue.Dead:
		return "dead: " + item.Reason.String() + lastFailure(item) + "; Retry attempts it again"
	case queue.Cancelled:
		return "cancelled: " + item.Reason.String()
	}
	return ""
}

func lastFailure(item *Item) string {
	for i := len(item.Attempts) - 1; i >= 0; i-- {
		if a := item.Attempts[i]; a.Error != nil {
			return "; the last attempt failed: " + a.Error.Message
		}
	}
	return ""
}
