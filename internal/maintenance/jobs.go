package maintenance

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// leaseJob takes a chore unless another process has it, or it ran less than every ago. It reports
// whether it did: a system statement.
func leaseJob(
	ctx context.Context, tx *sqlstore.Tx, name string, every, lease time.Duration,
) (bool, error) {
	n, err := tx.Exec(ctx, `insert into delivery_jobs (name, leased_until) values ($1, $2)
		on conflict (name) do update set leased_until = excluded.leased_until
		where delivery_jobs.leased_until <= $3 and (delivery_jobs.ran_at is null or delivery_jobs.ran_at <= $4)`,
		name, tx.Time(tx.Now.Add(lease)), tx.Time(tx.Now), tx.Time(tx.Now.Add(-every)))
	return n > 0, err
}

// finishJob gives a chore back: a system statement.
func finishJob(ctx context.Context, tx *sqlstore.Tx, name string) error {
	_, err := tx.Exec(ctx, `update delivery_jobs set leased_until = $2, ran_at = $2 where name = $1`,
		name, tx.Time(tx.Now))
	return err
}
