package delivery

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

const (
	checkBatch  = 20  // tests that a process takes at once
	mostChecks  = 200 // in one Maintain
	checksAtime = 4
	checkLease  = 10 * time.Minute
)

// check tests the connections of destinations where it is due. Each is tested by one process.
func (s *DeliveryService) check(ctx context.Context, chores *Chores) error {
	every := s.settings.Checks.Every
	if every < 0 {
		return nil
	}
	var types []string
	for _, name := range s.typeNames() {
		if s.settings.Types[name].Tester != nil {
			types = append(types, name)
		}
	}
	err := s.chore(ctx, "checks", maintainEvery/2, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		return true, tx.ScheduleChecks(ctx, types, tx.Now.Add(every), batch)
	})
	var mu sync.Mutex
	for taken := 0; taken < mostChecks && err == nil && ctx.Err() == nil; {
		var due []sqlstore.Checkable
		err = s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			due, err = tx.LeaseChecks(ctx, types, tx.Now.Add(checkLease), checkBatch)
			return err
		}, nil)
		if len(due) == 0 {
			break
		}
		taken += len(due)
		var wg sync.WaitGroup
		places := make(chan struct{}, checksAtime)
		for _, c := range due {
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				if s.checkOne(ctx, c) {
					mu.Lock()
					chores.DestinationsChecked++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	return err
}

// checkOne tests a destination if that says anything, and keeps what was found.
func (s *DeliveryService) checkOne(ctx context.Context, c sqlstore.Checkable) (tested bool) {
	log := s.settings.Logger.With("organization", c.Organization, "destination", c.ID)
	var usage sqlstore.Usage
	err := s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		usage, err = tx.Usage(ctx, c.Organization, c.No)
		return err
	})
	now, checks := s.settings.Now(), s.settings.Checks
	next := checks.Every
	ailing := c.Health.Status != destination.Healthy || c.Last != nil && !c.Last.OK
	// Its deliveries say that it is well, whatever it answers to tests.
	proven := now.Sub(usage.LastAt) < checks.Every && c.Health.Status == destination.Healthy && c.Health.ConsecutiveFailures == 0
	since := c.LastAt
	if since.IsZero() {
		since = c.CreatedAt
	}
	var report *destination.TestReport
	switch {
	case err != nil:
	case c.Disabled && !c.DisabledByService:
	case proven && !ailing && (checks.InUse < 0 || now.Sub(since) < checks.InUse):
		next = usage.LastAt.Add(checks.Every).Sub(now)
		if checks.InUse > 0 {
			next = min(next, since.Add(checks.InUse).Sub(now))
		}
	default:
		t := s.settings.Types[c.Type]
		var config any
		if config, err = engine.OpenConfig(ctx, s.settings.Keys, t, c.Destination); err == nil {
			report, err = s.test(ctx, t, c.Destination, config, c.ID)
		}
		if !proven && (ailing || report == nil || !report.OK) {
			next = checks.Failing
		}
	}
	if err != nil {
		log.WarnContext(ctx, "delivery: a scheduled connection test could not be made; it is tried again", "error", err)
	}
	err = s.store.Write(context.WithoutCancel(ctx), func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.FinishCheck(ctx, c.Destination, report, tx.Now.Add(next))
	}, sqlstore.Again)
	if err != nil {
		log.WarnContext(ctx, "delivery: the finding of a connection test could not be stored; it is tested again", "error", err)
		return false
	}
	if report != nil {
		s.tellCheck(c, report)
	}
	return report != nil
}

// tellCheck publishes what a test found that the last one did not.
func (s *DeliveryService) tellCheck(c sqlstore.Checkable, report *destination.TestReport) {
	publish := func(kind EventKind, reason string) {
		s.publish(Event{Kind: kind, Organization: c.Organization, Destination: c.ID, Reason: reason})
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
		publish(CheckFailed, finding)
	case !was && report.OK:
		publish(CheckRecovered, "")
	}
	for _, w := range report.Warnings {
		known := c.Last != nil && slices.ContainsFunc(c.Last.Warnings, func(old destination.Warning) bool {
			return old.Code == w.Code && old.Until.Equal(w.Until)
		})
		if !known {
			publish(DestinationDrift, w.Message)
		}
	}
}

// drain deletes destinations that were to be deleted once nothing waits for them.
func (s *DeliveryService) drain(ctx context.Context, chores *Chores) error {
	after := int64(0)
	var gone []*sqlstore.Destination
	err := s.chore(ctx, "draining", maintainEvery/2, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		rows, err := tx.DrainingDestinations(ctx, after, pageSize)
		if err != nil {
			return false, err
		}
		for _, row := range rows {
			after = row.No
			waits, err := tx.Waits(ctx, row.Organization, row.No)
			if err != nil {
				return false, err
			}
			if waits {
				continue
			}
			if err := tx.DeleteDestination(ctx, row.Organization, row.ID); err != nil {
				return false, err
			}
			gone = append(gone, row)
		}
		return len(rows) < pageSize, nil
	})
	chores.DestinationsDrained = len(gone)
	for _, row := range gone {
		s.publish(Event{Kind: DestinationDeleted, Organization: row.Organization, Destination: row.ID, Reason: "nothing waits for it any more"})
	}
	return err
}
