package queuestore

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/retry"
)

// HealthRow is the state of a destination that fails or has failed.
type HealthRow struct {
	Failures     int // in a row
	FailingSince time.Time
	LastFailure  time.Time
	Breaker      retry.BreakerState
	BreakerAt    time.Time // when Breaker last changed
	ProbeAt      time.Time // when an open breaker lets probes through; zero: not by itself
	Probed       int       // successes in a row since the breaker became half-open
	CatchUpTo    int64     // ready items up to this number were held; 0: none were
}

// Probing reports whether attempts may be made to find out whether the destination has recovered.
func (h *HealthRow) Probing(now time.Time) bool {
	return h.Breaker != retry.Closed && !h.ProbeAt.IsZero() && !h.ProbeAt.After(now)
}

// Verdict is what an observation changes besides the counts.
type Verdict int

// The verdicts.
const (
	NoChange  Verdict = iota
	Opened            // the breaker opened
	Recovered         // the breaker closed; a disabled destination becomes enabled
	GivenUp           // the destination is to be disabled
)

// Observe counts the end of an attempt at a destination.
func (h *HealthRow) Observe(fault bool, b retry.Breaker, disabled bool, now time.Time) Verdict {
	probing := h.Probing(now)
	if !fault {
		h.Failures, h.FailingSince = 0, time.Time{}
		if !probing {
			return NoChange // an attempt from before the breaker opened says nothing about now
		}
		if h.Probed++; h.Probed < b.Probes {
			return NoChange
		}
		h.close(now)
		return Recovered
	}
	h.Failures++
	h.LastFailure = now
	if h.FailingSince.IsZero() {
		h.FailingSince = now
	}
	switch {
	case !disabled && b.DisableFailures > 0 && h.Failures >= b.DisableFailures &&
		now.Sub(h.FailingSince) >= b.DisableAfter:
		h.close(now)
		if b.Recovery > 0 {
			h.open(now, b.Recovery)
		}
		return GivenUp
	case disabled && probing:
		h.open(now, b.Recovery)
	case !disabled && !b.Off && (probing || h.Breaker == retry.Closed && h.Failures >= b.Failures):
		h.open(now, b.Cooldown)
		return Opened
	}
	return NoChange
}

func (h *HealthRow) open(now time.Time, pause time.Duration) {
	h.Breaker, h.BreakerAt, h.ProbeAt, h.Probed = retry.Open, now, now.Add(pause), 0
}

func (h *HealthRow) close(now time.Time) {
	h.Breaker, h.BreakerAt, h.ProbeAt, h.Probed = retry.Closed, now, time.Time{}, 0
}

// HealthChange is a verdict on a destination.
type HealthChange struct {
	Organization, Destination string
	Verdict                   Verdict
	Disabled                  string // with GivenUp: why
	Enabled                   bool   // with Recovered: it was disabled
	Failures                  int
	Until                     time.Time // with Opened
}

// healthEffect writes what the outcomes say about destinations that fail or have failed. It goes by
// the order of their numbers, so that processes cannot deadlock.
type healthEffect struct{ store *Store }

// Finish implements [Effect]. It leaves its verdicts in f.Changes.
func (e healthEffect) Finish(ctx context.Context, tx *sqlstore.Tx, f *Finished) error {
	byNo := map[int64][]*Outcome{}
	for i, o := range f.Outcomes {
		if f.Applied[i] && (o.Blame == Fault || o.Blame == Success && (o.Ailing || byNo[o.No] != nil)) {
			byNo[o.No] = append(byNo[o.No], o)
		}
	}
	for _, no := range slices.Sorted(maps.Keys(byNo)) {
		changes, err := e.store.observe(ctx, tx, no, byNo[no])
		if err != nil {
			return err
		}
		f.Changes = append(f.Changes, changes...)
	}
	return nil
}

// observe writes what outcomes say about one destination.
func (s *Store) observe(
	ctx context.Context, tx *sqlstore.Tx, no int64, outcomes []*Outcome,
) (changes []HealthChange, err error) {
	first := outcomes[0]
	faulty := slices.ContainsFunc(outcomes, func(o *Outcome) bool { return o.Blame == Fault })
	h, disabled, err := lockHealth(ctx, tx, first.Organization, no, faulty)
	if err != nil || h == nil {
		return nil, err
	}
	for _, o := range outcomes {
		b := o.Breaker
		if disabled {
			b.Probes = 1
		}
		verdict, reason := h.Observe(o.Blame == Fault, b, disabled, tx.Now), ""
		if o.Disable != "" && !disabled {
			h.close(tx.Now)
			verdict, reason = GivenUp, o.Disable
		} else if verdict == GivenUp {
			reason = givenUp(h, tx.Now)
		}
		if verdict == NoChange {
			continue
		}
		c := HealthChange{Organization: o.Organization, Destination: o.Destination, Verdict: verdict, Disabled: reason,
			Failures: h.Failures, Until: h.ProbeAt}
		switch verdict {
		case GivenUp:
			disabled = true
			err = setDisabled(ctx, tx, o.Organization, o.Destination, reason)
		case Recovered:
			if c.Enabled = disabled; disabled {
				disabled = false
				err = setDisabled(ctx, tx, o.Organization, o.Destination, "")
			}
			if err == nil {
				err = s.catchUp(ctx, tx, h, b)
			}
		}
		if err != nil {
			return nil, err
		}
		changes = append(changes, c)
	}
	return changes, saveHealth(ctx, tx, no, h)
}

// givenUp says why the service disables a destination.
func givenUp(h *HealthRow, now time.Time) string {
	return "disabled by the service after " + plural(h.Failures, "failure") + " in a row, within " +
		now.Sub(h.FailingSince).Round(time.Second).String()
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprint(n, " ", what, "s")
}

// catchUp has the items that wait now released at a bounded rate.
func (s *Store) catchUp(ctx context.Context, tx *sqlstore.Tx, h *HealthRow, b retry.Breaker) (err error) {
	h.CatchUpTo = 0
	if b.CatchUpPerSecond > 0 {
		h.CatchUpTo, err = s.Mark(ctx, tx)
	}
	return err
}

// lockHealth locks and reads the health of a destination, and whether the destination is disabled.
// If there is no row, it returns nil or, with begin, makes one. It also returns nil if the
// destination is gone.
func lockHealth(
	ctx context.Context, tx *sqlstore.Tx, organization string, no int64, begin bool,
) (h *HealthRow, disabled bool, err error) {
	for {
		err = tx.Query(ctx, func(rows *sql.Rows) error {
			h = &HealthRow{}
			var catchUpTo sql.NullInt64
			err := rows.Scan(&h.Failures, &h.Breaker, &h.Probed, sqlstore.Time{T: &h.FailingSince},
				sqlstore.Time{T: &h.LastFailure}, sqlstore.Time{T: &h.BreakerAt},
				sqlstore.Time{T: &h.ProbeAt}, &catchUpTo, &disabled)
			h.CatchUpTo = catchUpTo.Int64
			return err
		}, `select h.failures, h.breaker, h.probed, h.failing_since, h.last_failure_at, h.breaker_at, h.probe_at,
			h.catch_up_to,
			d.disabled from delivery_health h join delivery_destinations d on d.no = h.destination_no
			where h.destination_no = $1 and h.organization_id = $2`+tx.Locking("h"), no, organization)
		if err != nil || h != nil || !begin {
			return h, disabled, err
		}
		n, err := tx.Exec(ctx, `insert into delivery_health (destination_no, organization_id)
			select no, organization_id from delivery_destinations where no = $1 and organization_id = $2
			on conflict (destination_no) do nothing`, no, organization)
		if err != nil {
			return nil, false, err
		}
		begin = n > 0 // otherwise it is gone, or another transaction has made the row: look once more
	}
}

func saveHealth(ctx context.Context, tx *sqlstore.Tx, no int64, h *HealthRow) error {
	var catchUpTo any
	if h.CatchUpTo > 0 {
		catchUpTo = h.CatchUpTo
	}
	_, err := tx.Exec(ctx, `update delivery_health set failures = $2, breaker = $3, probed = $4, failing_since = $5,
		last_failure_at = $6, breaker_at = $7, probe_at = $8, catch_up_to = $9 where destination_no = $1`,
		no, h.Failures, int(h.Breaker), h.Probed, tx.Time(h.FailingSince), tx.Time(h.LastFailure), tx.Time(h.BreakerAt),
		tx.Time(h.ProbeAt), catchUpTo)
	return err
}

// SetBreaker opens a destination's breaker until a call closes it, or closes it. Closing also
// resets the failure count; enabling and disabling by hand do both. b sets the rate at which held
// items are then released. It puts the new state into d.
func (s *Store) SetBreaker(
	ctx context.Context, tx *sqlstore.Tx, d *sqlstore.DestinationRow, state retry.BreakerState, b retry.Breaker,
) error {
	h, _, err := lockHealth(ctx, tx, d.Organization, d.No, true)
	if err != nil || h == nil {
		return err
	}
	if state == retry.Open {
		h.Breaker, h.BreakerAt, h.ProbeAt, h.Probed = retry.Open, tx.Now, time.Time{}, 0
	} else {
		h.close(tx.Now)
		h.Failures, h.FailingSince = 0, time.Time{}
		if err := s.catchUp(ctx, tx, h, b); err != nil {
			return err
		}
	}
	show(d, h)
	return saveHealth(ctx, tx, d.No, h)
}

// show puts the part of h that the owner sees into d.
func show(d *sqlstore.DestinationRow, h *HealthRow) {
	d.Health.ConsecutiveFailures = h.Failures
	d.Health.FailingSince, d.Health.LastFailure = h.FailingSince, h.LastFailure
	d.Health.Status = destination.StatusOf(h.Failures, h.Breaker)
	d.Health.Breaker, d.Health.BreakerSince, d.Health.ProbeAt = h.Breaker, h.BreakerAt, h.ProbeAt
}

// HalfOpen makes an open breaker half-open, and reports whether it was open: a system statement.
func HalfOpen(ctx context.Context, tx *sqlstore.Tx, no int64) (bool, error) {
	n, err := tx.Exec(ctx, `update delivery_health set breaker = $2, probed = 0, breaker_at = $3
		where destination_no = $1 and breaker = $4`, no, int(retry.HalfOpen), tx.Time(tx.Now), int(retry.Open))
	return n > 0, err
}

// CaughtUp notes that no held items are left up to a number: a system statement.
func CaughtUp(ctx context.Context, tx *sqlstore.Tx, no, to int64) error {
	_, err := tx.Exec(ctx, `update delivery_health set catch_up_to = null
		where destination_no = $1 and catch_up_to = $2`,
		no, to)
	return err
}

// CatchingUp reports whether items of a destination are ready up to a number: a system statement.
func CatchingUp(ctx context.Context, tx *sqlstore.Tx, no, to int64) (found bool, err error) {
	for rank := int64(0); rank <= Lowest && !found && err == nil; rank++ {
		err = tx.Query(ctx, func(*sql.Rows) error {
			found = true
			return nil
		}, `select 1 from delivery_queue where state = 0 and lease = 0 and lane = $1 and seq <= $2
			order by seq limit 1`, Lane(rank, no), to)
	}
	return found, err
}

// setDisabled disables a destination on behalf of the service or, with reason "", enables it.
func setDisabled(ctx context.Context, tx *sqlstore.Tx, organization, id, reason string) error {
	_, err := tx.Exec(ctx, `update delivery_destinations set disabled = $3, disabled_by_service = $3,
		disabled_reason = $4, version = version + 1, updated_at = $5
		where organization_id = $1 and id = $2 and disabled <> $3 and deleted_at is null`,
		organization, id, reason != "", reason, tx.Time(tx.Now))
	return err
}
