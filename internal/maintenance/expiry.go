package maintenance

import (
	"context"
	"errors"
	"time"

	"github.com/deliverykit/delivery/internal/audit"
	"github.com/deliverykit/delivery/internal/queuestore"
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
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (Batch, error) {
			n, err := deleteKeys(ctx, tx, batchSize)
			return Batch{n < batchSize, func() { r.Count(&r.Report.KeysExpired, int(n)) }}, err
		})
	}}
}

// deleteKeys removes up to limit expired idempotency keys, and returns how many: a system
// statement.
func deleteKeys(ctx context.Context, tx *sqlstore.Tx, limit int) (int64, error) {
	return tx.Exec(ctx, `delete from delivery_idempotency where (organization_id, key) in (
		select organization_id, key from delivery_idempotency where expires_at <= $1 order by expires_at limit $2)`,
		tx.Time(tx.Now), limit)
}

// expireStatistics removes statistics by the minute that are older than the retention.
func expireStatistics(s *settings.Settings) Chore {
	return Chore{Name: "statistics", Every: time.Hour, Do: func(ctx context.Context, r *Run) error {
		keep := s.Policy().Retention.Statistics
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (Batch, error) {
			n, err := queuestore.ExpireMinutes(ctx, tx, tx.Now.Add(-keep), batchSize)
			forgot := queuestore.ForgetWorkers(ctx, tx, tx.Now.Add(-workersSeen))
			return Batch{Done: n < batchSize}, errors.Join(err, forgot)
		})
	}}
}

// expireSecurityEvents removes security events after 180 days.
func expireSecurityEvents() Chore {
	return Chore{Name: "security events", Every: time.Hour, Do: func(ctx context.Context, r *Run) error {
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (Batch, error) {
			n, err := audit.Expire(ctx, tx, tx.Now.Add(-securityLifetime), batchSize)
			return Batch{n < batchSize, func() { r.Count(&r.Report.SecurityEventsExpired, int(n)) }}, err
		})
	}}
}
