package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/deliverykit/delivery/queue"
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
	Failed  int           // the destination's failures in a row as the claim saw them
	Disable string        // why the destination is to be disabled, if it is
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

// Finish applies outcomes to the items whose fence still matches, and reports for each whether it did. For the others it
// records nothing. It must run in a write transaction.
func (tx *Tx) Finish(ctx context.Context, outcomes []*Outcome) ([]bool, error) {
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
			return nil, err
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
			return nil, err
		}
	}
	if len(ends) > 0 {
		if err := tx.s.End(ctx, tx, tx.Now, ends, func(i int) { applied[endAt[i]] = true }); err != nil {
			return nil, err
		}
	}
	return applied, tx.health(ctx, outcomes, applied)
}

// cancelled is the end of an item that has just been put back although cancelling was asked for.
func cancelled(o *Outcome, reason queue.Reason) *Attempt {
	k := o.Key
	k.Fence++
	return &Attempt{Key: k, Destination: o.Destination, State: queue.Cancelled, Reason: reason, Took: NotBegun}
}

// health writes what the outcomes say of destinations, in the order of their numbers so that processes cannot deadlock,
// and only of those that fail or have failed.
func (tx *Tx) health(ctx context.Context, outcomes []*Outcome, applied []bool) error {
	type change struct {
		no           int64
		organization string
		destination  string
		failures     int
		reset        bool
		disable      string
	}
	changes := map[int64]*change{}
	for i, o := range outcomes {
		if !applied[i] || o.Blame == NoBlame || o.Blame == Success && o.Failed == 0 && changes[o.No] == nil {
			continue
		}
		c := changes[o.No]
		if c == nil {
			c = &change{no: o.No, organization: o.Organization, destination: o.Destination}
			changes[o.No] = c
		}
		if o.Blame == Success {
			c.failures, c.reset = 0, true
		} else {
			c.failures++
		}
		if o.Disable != "" {
			c.disable = o.Disable
		}
	}
	sorted := make([]*change, 0, len(changes))
	for _, c := range changes {
		sorted = append(sorted, c)
	}
	slices.SortFunc(sorted, func(a, b *change) int { return cmp.Compare(a.no, b.no) })
	for _, c := range sorted {
		if err := tx.count(ctx, c.organization, c.no, c.failures, c.reset); err != nil {
			return err
		}
		if c.disable != "" {
			if err := tx.disable(ctx, c.organization, c.destination, c.disable); err != nil {
				return err
			}
		}
	}
	return nil
}

func (tx *Tx) count(ctx context.Context, organization string, no int64, failures int, reset bool) error {
	if failures == 0 {
		_, err := tx.Exec(ctx, `update delivery_health set failures = 0, failing_since = null
			where destination_no = $1 and organization_id = $2 and failures > 0`, no, organization)
		return err
	}
	before := `delivery_health.failures`
	since := `coalesce(delivery_health.failing_since, excluded.failing_since)`
	if reset {
		before, since = `0`, `excluded.failing_since`
	}
	_, err := tx.Exec(ctx, `insert into delivery_health (destination_no, organization_id, failures, failing_since, last_failure_at)
		values ($1, $2, $3, $4, $4) on conflict (destination_no) do update set failures = `+before+` + excluded.failures,
		failing_since = `+since+`, last_failure_at = excluded.last_failure_at`,
		no, organization, failures, tx.s.Time(tx.Now))
	return err
}

// ResetFailures makes a destination start afresh.
func (tx *Tx) ResetFailures(ctx context.Context, d *Destination) error {
	d.Health.ConsecutiveFailures, d.Health.FailingSince = 0, time.Time{}
	return tx.count(ctx, d.Organization, d.No, 0, true)
}

func (tx *Tx) disable(ctx context.Context, organization, id, reason string) error {
	d, err := tx.Destination(ctx, organization, id)
	if err != nil || d == nil || d.Disabled || d.Deleted {
		return err
	}
	d.Disabled, d.DisabledReason = true, reason
	_, err = tx.UpdateDestination(ctx, d)
	return err
}

// Recorded reports which attempts are in the history: what settles a COMMIT whose outcome is unknown.
func (tx *Tx) Recorded(ctx context.Context, k Key) (found bool, err error) {
	err = tx.Query(ctx, func(*sql.Rows) error {
		found = true
		return nil
	}, `select 1 from delivery_attempts where organization_id = $1 and delivery_id = $2 and n = $3 and fence = $4`,
		k.Organization, k.Delivery, k.N, k.Fence)
	return found, err
}

// NextDue returns when the next item falls due that is not ready yet, zero if none will: a system statement.
func (tx *Tx) NextDue(ctx context.Context) (at time.Time, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var deadline time.Time
		err := rows.Scan(Time{&at}, Time{&deadline})
		if at.IsZero() || !deadline.IsZero() && deadline.Before(at) {
			at = deadline
		}
		return err
	}, `select (select min(run_at) from delivery_queue where state <> 0),
		(select min(deadline) from delivery_queue where deadline is not null and state <> 1)`)
	return at, err
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
