package maintenance

import (
	"context"
	"errors"
	"time"

	"github.com/deliverykit/delivery/internal/audit"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

const (
	workersSeen      = 24 * time.Hour // since a process was seen, after which it is forgotten
	securityLifetime = 180 * 24 * time.Hour
)

// expireKeys removes idempotency keys whose time has passed.
func expireKeys() Chore {
	return Chore{Name: "idempotency", Every: 10 * time.Minute, Do: func(ctx context.Context, r *Run) error {
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			n, err := tx.ExpireKeys(ctx, batchSize)
			r.Count(&r.Report.KeysExpired, int(n))
			return n < batchSize, err
		})
	}}
}

// expireStatistics removes statistics by the minute that are older than the retention.
func expireStatistics(s *settings.Settings) Chore {
	return Chore{Name: "statistics", Every: time.Hour, Do: func(ctx context.Context, r *Run) error {
		keep := s.Policy().Retention.Statistics
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			n, err := tx.ExpireMinutes(ctx, tx.Now.Add(-keep), batchSize)
			return n < batchSize, errors.Join(err, tx.ForgetWorkers(ctx, tx.Now.Add(-workersSeen)))
		})
	}}
}

// expireSecurityEvents removes security events after 180 days.
func expireSecurityEvents() Chore {
	return Chore{Name: "security events", Every: time.Hour, Do: func(ctx context.Context, r *Run) error {
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			n, err := audit.Expire(ctx, tx, tx.Now.Add(-securityLifetime), batchSize)
			r.Count(&r.Report.SecurityEventsExpired, int(n))
			return n < batchSize, err
		})
	}}
}

// expireDeliveries removes deliveries that are older than the retention, organization by
// organization.
func expireDeliveries(s *settings.Settings) Chore {
	wanted := func() bool { return s.Policy().Retention.Deliveries > 0 }
	return Chore{Name: "retention", Every: time.Hour, Wanted: wanted, Do: func(ctx context.Context, r *Run) error {
		keep := s.Policy().Retention
		if keep.Deliveries == 0 { // changed since
			return nil
		}
		organization, after := "", ""
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (done bool, err error) {
			if after == "" {
				if organization, err = tx.NextOrganization(ctx, organization); err != nil || organization == "" {
					return true, err
				}
			}
			n, next, err := tx.Retain(ctx, organization, after, tx.Now.Add(-keep.Deliveries), tx.Now.Add(-keep.DeadLetters), batchSize)
			if err != nil {
				return false, err
			}
			after = next
			r.Count(&r.Report.DeliveriesExpired, n)
			return false, nil
		})
	}}
}
