package queuestore

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// Outcome is what a worker, a sweep or a call decides about an item: a record for its history, and
// either its end, if its state is one, or its return to the queue.
type Outcome struct {
	sqlstore.AttemptRow
	No      int64         // the number of the destination
	Delay   time.Duration // until the next attempt, if it returns to the queue
	Charge  bool          // the attempt counts
	Lost    bool          // the lease was lost
	Blame   Blame         // what it says about the destination
	Ailing  bool          // the claim saw failures or an open breaker, so a success is news
	Breaker retry.Breaker // of the destination, if Blame is set
	Disable string        // why the destination is to be disabled; "": it is not
	Written bool          // Reference is to be removed some day
}

// Blame says whether an attempt counts for or against the health of its destination.
type Blame int

// The values of Blame.
const (
	NoBlame Blame = iota
	Success
	Fault
)

// Silent reports whether the outcome leaves no record: the lease was given up before an attempt
// began.
func (o *Outcome) Silent() bool { return o.Reason == queue.Released && o.Took == sqlstore.NotBegun }

// Finished is the result of [Store.Finish].
type Finished struct {
	Outcomes []*Outcome
	Applied  []bool // by outcome: the fence matched
	// Ended are the last records of the items that ended. An item that returned to the queue and
	// was to be cancelled has one too, while its outcome is the return.
	Ended   []*sqlstore.AttemptRow
	Changes []HealthChange // what the effect on health found; later effects see it
}

// Finish applies outcomes to the items whose fence still matches, and reports for each whether it
// did. For the others it records nothing. Then the effects of the store run. It needs a transaction
// that writes.
func (s *Store) Finish(ctx context.Context, tx *sqlstore.Tx, outcomes []*Outcome) (Finished, error) {
	f := &Finished{Outcomes: outcomes, Applied: make([]bool, len(outcomes))}
	ends := &endings{f: f}
	var returns []int // to the queue
	for i, o := range outcomes {
		o.EndedAt = tx.Now
		if o.State.Ended() {
			o.NextAt = time.Time{}
			ends.add(&o.AttemptRow, i)
		} else {
			returns = append(returns, i)
		}
	}
	if len(returns) > 0 {
		if err := s.reschedule(ctx, tx, outcomes, returns, ends); err != nil {
			return Finished{}, err
		}
	}
	if len(ends.attempts) > 0 {
		f.Ended = make([]*sqlstore.AttemptRow, 0, len(ends.attempts))
		if err := s.End(ctx, tx, tx.Now, ends.attempts, ends.apply); err != nil {
			return Finished{}, err
		}
	}
	for _, effect := range s.effects {
		if err := effect.Finish(ctx, tx, f); err != nil {
			return Finished{}, err
		}
	}
	return *f, nil
}

// endings are the ends of items, and of which outcome each is.
type endings struct {
	attempts []*sqlstore.AttemptRow
	outcomes []int
	f        *Finished
}

func (e *endings) add(a *sqlstore.AttemptRow, outcome int) {
	e.attempts, e.outcomes = append(e.attempts, a), append(e.outcomes, outcome)
}

func (e *endings) apply(i int) {
	e.f.Applied[e.outcomes[i]] = true
	e.f.Ended = append(e.f.Ended, e.attempts[i])
}

// reschedule returns items to the queue and records that. It adds to ends those that are to be
// cancelled.
func (s *Store) reschedule(
	ctx context.Context, tx *sqlstore.Tx, outcomes []*Outcome, returns []int, ends *endings,
) error {
	changes := make([]Change, len(returns))
	at := make(map[sqlstore.Key]int, len(returns))
	for k, i := range returns {
		o := outcomes[i]
		o.NextAt = tx.Now.Add(o.Delay)
		state := queue.Scheduled
		if o.Delay <= 0 {
			state = queue.Ready
		}
		changes[k] = Change{Key: o.Key, State: state, RunAt: o.NextAt, Charge: o.Charge, Lost: o.Lost}
		at[o.Key] = i
	}
	done, err := s.Reschedule(ctx, tx, changes)
	if err != nil {
		return err
	}
	var records []*sqlstore.AttemptRow
	for _, c := range done {
		i := at[c.Key]
		o := outcomes[i]
		ends.f.Applied[i] = true
		if c.Cancel != queue.None {
			o.NextAt = time.Time{}
			ends.add(cancelled(o, c.Cancel), i)
		}
		if !o.Silent() {
			records = append(records, &o.AttemptRow)
		}
	}
	if len(records) == 0 {
		return nil
	}
	return s.Append(ctx, tx, tx.Now, records)
}

// cancelled returns the end of an item that has just returned to the queue although it is to be
// cancelled.
func cancelled(o *Outcome, reason queue.Reason) *sqlstore.AttemptRow {
	k := o.Key
	k.Fence++
	return &sqlstore.AttemptRow{
		Key: k, Destination: o.Destination, State: queue.Cancelled, Reason: reason, Took: sqlstore.NotBegun,
	}
}

const maxCancelled = 1000

// CancelPending ends the items of a delivery or, with delivery "", of a destination, and flags
// those that are leased. It returns how many it found, at most 1,000 at a time. For a destination
// it passes over those that are flagged already.
func (s *Store) CancelPending(
	ctx context.Context, tx *sqlstore.Tx, organization, delivery string, no int64, reason queue.Reason,
) (int, error) {
	rows, err := s.Pending(ctx, tx, organization, delivery, no, maxCancelled)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	nos := make([]int64, len(rows))
	for i, c := range rows {
		nos[i] = DestinationOf(c.Lane)
	}
	infos, err := LaneInfos(ctx, tx, nos)
	if err != nil {
		return 0, err
	}
	var outcomes []*Outcome
	for i, c := range rows {
		if c.State == queue.Processing {
			if err := requestCancel(ctx, tx, c.Key, reason); err != nil {
				return 0, err
			}
			continue
		}
		o := &Outcome{No: nos[i]}
		o.Key, o.Destination = c.Key, infos[nos[i]].ID
		o.State, o.Reason, o.Took = queue.Cancelled, reason, sqlstore.NotBegun
		outcomes = append(outcomes, o)
	}
	_, err = s.Finish(ctx, tx, outcomes)
	return len(rows), err
}

// requestCancel flags a leased item. Its worker sees that at the next heartbeat.
func requestCancel(ctx context.Context, tx *sqlstore.Tx, k sqlstore.Key, reason queue.Reason) error {
	_, err := tx.Exec(ctx, `update delivery_queue set cancel = $4
		where organization_id = $1 and delivery_id = $2 and n = $3`,
		k.Organization, k.Delivery, k.N, int(reason))
	return err
}
