package maintenance

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

const (
	checkBatch   = 20  // tests that a process takes at once
	maxChecks    = 200 // tests in one run
	checksAtOnce = 4
	checkLease   = 10 * time.Minute
	maxCheck     = 30 * time.Second // of one test, whatever the destination's own timeout is
)

// checks are the scheduled connection tests.
type checks struct {
	settings *settings.Settings
	configs  *configs.Configs
	bus      *events.Bus
	logger   *slog.Logger
	types    []string // those that can be tested
}

func newChecks(s *settings.Settings, c *configs.Configs, bus *events.Bus) *checks {
	k := &checks{settings: s, configs: c, bus: bus, logger: s.Logger}
	for _, name := range s.TypeNames() {
		if s.Types[name].Tester != nil {
			k.types = append(k.types, name)
		}
	}
	return k
}

func (k *checks) wanted() bool { return k.settings.Policy().Checks.Every >= 0 }

// schedule notes for destinations that have none when their first test is due.
func (k *checks) schedule() Chore {
	return Chore{Name: "checks", Every: every / 2, Wanted: k.wanted, Do: func(ctx context.Context, r *Run) error {
		interval := k.settings.Policy().Checks.Every
		if interval < 0 { // changed since
			return nil
		}
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (Batch, error) {
			return Batch{Done: true}, scheduleChecks(ctx, tx, k.types, tx.Now.Add(interval), batchSize)
		})
	}}
}

// tests makes the tests that are due. Each destination is leased to one process, so all processes
// take part.
func (k *checks) tests() Chore {
	return Chore{
		Name:    "connection tests",
		Network: true,
		Wanted:  k.wanted,
		Do: func(ctx context.Context, r *Run) error {
			for taken := 0; taken < maxChecks && ctx.Err() == nil; {
				var due []checkable
				err := r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
					due, err = leaseChecks(ctx, tx, k.types, tx.Now.Add(checkLease), checkBatch)
					return err
				}})
				if err != nil || len(due) == 0 {
					return err
				}
				taken += len(due)
				var group errgroup.Group
				group.SetLimit(checksAtOnce)
				for _, c := range due {
					group.Go(func() error {
						k.check(ctx, r, c)
						return nil
					})
				}
				_ = group.Wait() // each logs its own error
			}
			return nil
		},
	}
}

// check tests a destination if a test says anything, and stores the finding.
func (k *checks) check(ctx context.Context, r *Run, c checkable) {
	log := k.logger.With("organization", c.Organization, "destination", c.ID)
	report, next, err := k.test(ctx, r, c)
	if err != nil {
		log.WarnContext(ctx, "delivery: a scheduled connection test could not be made; it is tried again", "error", err)
	}
	err = r.store.Commit(
		context.WithoutCancel(ctx),
		sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
			return finishCheck(ctx, tx, c.DestinationRow, report, tx.Now.Add(next))
		}, Committed: sqlstore.Again},
	)
	if err != nil {
		log.WarnContext(
			ctx, "delivery: the finding of a connection test could not be stored; it is tested again", "error",
			err,
		)
		return
	}
	if report != nil {
		r.Count(&r.Report.DestinationsChecked, 1)
		k.publish(c, report)
	}
}

// test makes the test, unless the destination is disabled by hand or its deliveries show that it is
// well; then the report is nil. next is how long the next test is away.
func (k *checks) test(
	ctx context.Context, r *Run, c checkable,
) (report *destination.TestReport, next time.Duration, err error) {
	policy := k.settings.Policy()
	every, failing, inUse := policy.Checks.Every, policy.Checks.Failing, policy.Checks.InUse
	var usage queuestore.UsageRow
	err = r.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		usage, err = queuestore.Usage(ctx, tx, c.Organization, c.No)
		return err
	})
	if err != nil || c.Disabled && !c.DisabledByService {
		return nil, every, err
	}
	now := k.settings.Now()
	well := c.Health.Status == destination.Healthy
	ailing := !well || c.Last != nil && !c.Last.OK
	proven := now.Sub(usage.LastAt) < every && well && c.Health.ConsecutiveFailures == 0
	since := c.LastAt
	if since.IsZero() {
		since = c.CreatedAt
	}
	if proven && !ailing && (inUse < 0 || now.Sub(since) < inUse) {
		next = usage.LastAt.Add(every).Sub(now)
		if inUse > 0 {
			next = min(next, since.Add(inUse).Sub(now))
		}
		return nil, next, nil
	}
	t := k.settings.Types[c.Type]
	config, err := k.configs.Open(ctx, t, c.DestinationRow)
	if err == nil {
		report, err = t.Test(ctx, min(policy.Timeout(c.Limits), maxCheck),
			&handler.TestRequest{Organization: c.Organization, DestinationID: c.ID, Config: config})
	}
	if !proven && (ailing || report == nil || !report.OK) {
		return report, failing, err
	}
	return report, every, err
}

// publish reports what a test found and the last one did not.
func (k *checks) publish(c checkable, report *destination.TestReport) {
	publish := func(kind event.Kind, reason string) {
		k.bus.Publish(event.Event{Kind: kind, Organization: c.Organization, Destination: c.ID, Reason: reason})
	}
	was := c.Last == nil || c.Last.OK
	switch {
	case was && !report.OK:
		finding := ""
		for _, step := range report.Steps {
			if !step.OK && !step.Skipped {
				finding = step.Name + ": " + step.Finding
			}
		}
		publish(event.CheckFailed, finding)
	case !was && report.OK:
		publish(event.CheckRecovered, "")
	}
	for _, w := range report.Warnings {
		known := c.Last != nil && slices.ContainsFunc(c.Last.Warnings, func(old destination.Warning) bool {
			return old.Code == w.Code && old.Until.Equal(w.Until)
		})
		if !known {
			publish(event.DestinationDrift, w.Message)
		}
	}
}
