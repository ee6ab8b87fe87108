package delivery

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/maintenance"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// DefaultRoute says where requests that name no destination go.
type DefaultRoute struct {
	Destinations []*destination.Destination
	Fallback     bool // they stand in for the primary defaults, none of which is usable
	Usable       bool // one of them is enabled and has no open breaker; otherwise items for them wait
}

// Defaults returns where a request with that topic goes now if it names no destination. If there
// are none, Deliver answers such a request with [ErrNoDestinations].
func (d *Destinations) Defaults(ctx context.Context, topic string) (DefaultRoute, error) {
	if err := d.o.authorize(ctx, access.ReadDestinations); err != nil {
		return DefaultRoute{}, err
	}
	var route DefaultRoute
	err := d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		route = DefaultRoute{}
		all, err := queuestore.Defaults(ctx, tx, d.o.name)
		if err != nil {
			return err
		}
		for _, chosen := range queuestore.Choose(all, topic) {
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

// Health reports how a destination did in the window before now, in whole minutes. Default window:
// an hour. A window reaches back only as far as statistics are kept: see [WithRetention]. The total
// and the time of the last use are kept for ever.
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
		sum, err := queuestore.Sum(ctx, tx, d.o.name, row.No, report.Since)
		if err != nil {
			return err
		}
		summarize(report, &sum)
		waiting, err := queuestore.Waits(ctx, tx, d.o.name, row.No)
		if err != nil {
			return err
		}
		report.Pending = waiting
		usage, err := queuestore.Usage(ctx, tx, d.o.name, row.No)
		if err != nil {
			return err
		}
		report.LastUsed = usage.LastAt
		report.Total = destination.Usage{
			Delivered: usage.Delivered, Dead: usage.Dead, Attempts: usage.Attempts, Failed: usage.Failed,
		}
		report.Check, report.NextCheck, err = maintenance.LastCheck(ctx, tx, d.o.name, row.No)
		return err
	})
	if err != nil {
		return nil, err
	}
	return report, nil
}

// summarize derives rates and percentiles from counts.
func summarize(r *destination.HealthReport, m *queuestore.Minute) {
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
				return destination.Duration(queuestore.Buckets[min(i, len(queuestore.Buckets)-1)])
			}
		}
		return 0
	}
	r.Latency.P50, r.Latency.P95, r.Latency.P99 = percentile(0.5), percentile(0.95), percentile(0.99)
}
