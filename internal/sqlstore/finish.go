package sqlstore

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// Outcome is what a lease, a sweep or a call makes of an item: the record of it, and either its end (Attempt.State is
// one) or its return to the queue.
type Outcome struct {
	Attempt
	No      int64         // of the destination
	Delay   time.Duration // of the next attempt, where it goes back
	Charge  bool          // the attempt counts
	Lost    bool          // the lease was lost
	Blame   Blame         // what it says of the destination
	Ailing  bool          // the claim saw failures of the destination, or an open breaker: a success is news
	Breaker retry.Breaker // the destination's, for what is blamed on it
	Disable string        // why the destination is to be disabled, if it is
	Written bool          // what was written is to be removed some day
}

// Blame says whether an attempt counts for or against its destination's health.
type Blame int

// The values of Blame.
const (
	NoBlame Blame = iota
	Success
	Fault
)

// Silent reports whether the outcome leaves no record: a lease given back before its attempt began.
func (o *Outcome) Silent() bool { return o.Reason == queue.Released && o.Took == NotBegun }

// Finished is what Finish did.
type Finished struct {
	Applied []bool // by outcome
	Changes []HealthChange
}

// Finish applies outcomes to the items whose fence still matches, and reports for each whether it did. For the others it
// records nothing. It must run in a write transaction.
func (tx *Tx) Finish(ctx context.Context, outcomes []*Outcome) (f Finished, err error) {
	applied := make([]bool, len(outcomes))
	var ends, appends []*Attempt
	var endAt []int // the outcome of each end
	var changes []Change
	var at map[Key]int // the outcome of each change
	for i, o := range outcomes {
		o.EndedAt = tx.Now
		if o.State.Ended() {
			o.NextAt = time.Time{}
			ends, endAt = append(ends, &o.Attempt), append(endAt, i)
			continue
		}
		o.NextAt = tx.Now.Add(o.Delay)
		state := queue.Scheduled
		if o.Delay <= 0 {
			state = queue.Ready
		}
		if at == nil {
			at = map[Key]int{}
		}
		at[o.Key] = i
		changes = append(changes, Change{Key: o.Key, State: state, RunAt: o.NextAt, Charge: o.Charge, Lost: o.Lost})
	}
	if len(changes) > 0 {
		done, err := tx.s.Reschedule(ctx, tx, changes)
		if err != nil {
			return f, err
		}
		for _, c := range done {
			o := outcomes[at[c.Key]]
			applied[at[c.Key]] = true
			if c.Cancel != queue.None {
				o.NextAt = time.Time{}
				ends, endAt = append(ends, cancelled(o, c.Cancel)), append(endAt, at[c.Key])
			}
			if !o.Silent() {
				appends = append(appends, &o.Attempt)
			}
		}
	}
	if len(appends) > 0 {
		if err := tx.s.Append(ctx, tx, tx.Now, appends); err != nil {
			return f, err
		}
	}
	if len(ends) > 0 {
		if err := tx.s.End(ctx, tx, tx.Now, ends, func(i int) { applied[endAt[i]] = true }); err != nil {
			return f, err
		}
	}
	if err := tx.noteWritten(ctx, outcomes, applied); err != nil {
		return f, err
	}
	f.Applied = applied
	f.Changes, err = tx.health(ctx, outcomes, applied)
	return f, err
}

// cancelled is the end of an item that has just been put back although cancelling was asked for.
func cancelled(o *Outcome, reason queue.Reason) *Attempt {
	k := o.Key
	k.Fence++
	return &Attempt{Key: k, Destination: o.Destination, State: queue.Cancelled, Reason: reason, Took: NotBegun}
}

const mostCancelled = 1000

// CancelPending ends the waiting items of a delivery or, with delivery "", of a destination, and flags the leased ones.
// It returns how many it found, at most 1,000 at a time; of a destination, none that is flagged already.
func (tx *Tx) CancelPending(ctx context.Context, organization, delivery string, no int64, reason queue.Reason) (int, error) {
	rows, err := tx.s.Pending(ctx, tx, organization, delivery, no, mostCancelled)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	nos := make([]int64, len(rows))
	for i, c := range rows {
		nos[i] = DestinationOf(c.Lane)
	}
	infos, err := tx.LaneInfos(ctx, nos)
	if err != nil {
		return 0, err
	}
	var outcomes []*Outcome
	for i, c := range rows {
		if c.State == queue.Processing {
			if err := tx.requestCancel(ctx, c.Key, reason); err != nil {
				return 0, err
			}
			continue
		}
		o := &Outcome{No: nos[i]}
		o.Key, o.Destination, o.State, o.Reason, o.Took = c.Key, infos[nos[i]].ID, queue.Cancelled, reason, NotBegun
		outcomes = append(outcomes, o)
	}
	_, err = tx.Finish(ctx, outcomes)
	return len(rows), err
}

// requestCancel flags a leased item; its worker sees it at the next heartbeat.
func (tx *Tx) requestCancel(ctx context.Context, k Key, reason queue.Reason) error {
	_, err := tx.Exec(ctx, `update delivery_queue set cancel = $4 where organization_id = $1 and delivery_id = $2 and n = $3`,
		k.Organization, k.Delivery, k.N, int(reason))
	return err
}
