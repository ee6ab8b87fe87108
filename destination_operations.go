package delivery

import (
	"context"
	"fmt"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

// Enable has what is held for a destination delivered again, at a bounded rate; its failures count from zero.
func (d *Destinations) Enable(ctx context.Context, id string) (*destination.Destination, error) {
	return d.update(ctx, id, access.OperateDestination, destination.Patch{Disabled: destination.Set(false)}, d.apply)
}

// Disable holds what waits for a destination, and what is accepted for it, until Enable. reason is for people, up to 200
// bytes.
func (d *Destinations) Disable(ctx context.Context, id, reason string) (*destination.Destination, error) {
	problem := badText(reason)
	if len(reason) > mostReason {
		problem = fmt.Sprintf("has %d bytes, at most %d are allowed", len(reason), mostReason)
	}
	if problem != "" {
		return nil, destination.NewValidationError("disabling", destination.Invalid("reason", "%s", problem))
	}
	return d.update(ctx, id, access.OperateDestination, destination.Patch{Disabled: destination.Set(true)},
		func(ctx context.Context, row *sqlstore.Destination, p destination.Patch) error {
			err := d.apply(ctx, row, p)
			row.DisabledReason = reason
			return err
		})
}

const mostReason = 200

// Pause holds what waits for a destination, until Resume: nothing more is attempted. Attempts under way go on.
func (d *Destinations) Pause(ctx context.Context, id string) error { return d.pause(ctx, id, true) }

// Resume ends a Pause.
func (d *Destinations) Resume(ctx context.Context, id string) error { return d.pause(ctx, id, false) }

func (d *Destinations) pause(ctx context.Context, id string, paused bool) error {
	row, err := d.get(ctx, id, access.OperateDestination)
	if err != nil {
		return err
	}
	found := false
	err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		found, err = tx.PauseDestination(ctx, d.o.name, row.ID, paused)
		return err
	}, sqlstore.Again)
	if err == nil && !found {
		err = notFound("destination", id)
	}
	if err == nil {
		d.o.s.engine.Wake()
		d.changed(row, map[bool]EventKind{true: DestinationPaused, false: DestinationResumed}[paused], "")
	}
	return err
}

// OpenBreaker opens a destination's breaker until CloseBreaker: what waits for it is held, and no probe is let through.
func (d *Destinations) OpenBreaker(ctx context.Context, id string) error {
	return d.setBreaker(ctx, id, retry.Open)
}

// CloseBreaker closes a destination's breaker and counts its failures from zero. It opens again for new failures, unless
// retry.Breaker.Off is set. Of a disabled destination it is an error.
func (d *Destinations) CloseBreaker(ctx context.Context, id string) error {
	return d.setBreaker(ctx, id, retry.Closed)
}

func (d *Destinations) setBreaker(ctx context.Context, id string, state retry.BreakerState) error {
	row, err := d.get(ctx, id, access.OperateDestination)
	if err != nil {
		return err
	}
	if row.Disabled {
		return fmt.Errorf("delivery: destination %q is disabled; enable it instead, which also resets its breaker", id)
	}
	err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.SetBreaker(ctx, row, state, d.o.s.engine.Breaker(row))
	}, sqlstore.Again)
	if err == nil {
		d.o.s.engine.Wake()
		d.changed(row, map[bool]EventKind{true: BreakerClosed, false: BreakerOpened}[state == retry.Closed], "by hand")
	}
	return err
}

// DefaultRoute is where requests that name no destination go.
type DefaultRoute struct {
	Destinations []*destination.Destination
	Fallback     bool // they stand in for the primary defaults, none of which is usable
	Usable       bool // one of them is neither disabled nor has an open breaker; else what goes there waits
}

// Defaults returns where a request of that topic goes now, if it names no destination. Without any, Deliver would answer such a
// request with ErrNoDestinations.
func (d *Destinations) Defaults(ctx context.Context, topic string) (DefaultRoute, error) {
	if err := d.o.authorize(ctx, access.ReadDestinations); err != nil {
		return DefaultRoute{}, err
	}
	var route DefaultRoute
	err := d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		route = DefaultRoute{}
		all, err := tx.Defaults(ctx, d.o.name)
		if err != nil {
			return err
		}
		for _, chosen := range sqlstore.Choose(all, topic) {
			row, err := tx.Destination(ctx, d.o.name, chosen.ID)
			if err != nil {
				return err
			}
			if row == nil || row.Deleted { // since the first statement
				continue
			}
			route.Destinations = append(route.Destinations, &row.Destination)
			route.Fallback, route.Usable = chosen.Place > 0, route.Usable || chosen.Usable
		}
		return nil
	})
	if err != nil {
		return DefaultRoute{}, err
	}
	return route, nil
}

// Health reports how a destination did since the given time before now, in whole minutes; 0 is an hour. Statistics by the
// minute are kept for as long as WithRetention says, 32 days if it is not given: a longer window is no longer than that. The
// total and the time of the last use are kept for ever.
func (d *Destinations) Health(ctx context.Context, id string, window time.Duration) (*destination.HealthReport, error) {
	row, err := d.get(ctx, id, access.ReadDestinations)
	if err != nil {
		return nil, err
	}
	if window < 0 {
		return nil, destination.NewValidationError("health", destination.Invalid("window", "%v is negative", window))
	}
	if window == 0 {
		window = time.Hour
	}
	report := &destination.HealthReport{Health: row.Health}
	err = d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		report.Since = tx.Now.Add(-window).Truncate(time.Minute)
		sum, err := tx.Sum(ctx, d.o.name, row.No, report.Since)
		if err != nil {
			return err
		}
		summarize(report, &sum)
		waiting, err := tx.Waits(ctx, d.o.name, row.No)
		if err != nil {
			return err
		}
		report.Pending = waiting
		usage, err := tx.Usage(ctx, d.o.name, row.No)
		if err != nil {
			return err
		}
		report.LastUsed = usage.LastAt
		report.Total = destination.Usage{Delivered: usage.Delivered, Dead: usage.Dead, Attempts: usage.Attempts, Failed: usage.Failed}
		report.Check, report.NextCheck, err = tx.LastCheck(ctx, d.o.name, row.No)
		return err
	})
	if err != nil {
		return nil, err
	}
	return report, nil
}

// summarize derives rates and percentiles from counts.
func summarize(r *destination.HealthReport, m *sqlstore.Minute) {
	r.Delivered, r.Dead, r.Failed = m.Delivered, m.Dead, m.Failed
	for _, n := range m.Attempts {
		r.Attempts += n
	}
	r.SuccessRate = 1
	if r.Attempts == 0 {
		return
	}
	r.SuccessRate = float64(r.Attempts-r.Failed) / float64(r.Attempts)
	r.Latency.Mean = destination.Duration(m.Took / float64(r.Attempts) * float64(time.Second))
	percentile := func(p float64) destination.Duration {
		seen := int64(0)
		for i, n := range m.Attempts {
			if seen += n; float64(seen) >= p*float64(r.Attempts) {
				return destination.Duration(sqlstore.Buckets[min(i, len(sqlstore.Buckets)-1)])
			}
		}
		return 0
	}
	r.Latency.P50, r.Latency.P95, r.Latency.P99 = percentile(0.5), percentile(0.95), percentile(0.99)
}
