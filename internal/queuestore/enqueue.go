package queuestore

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// NewDelivery is a delivery to insert. It goes to the destinations of Items, to subscribers, and to
// destinations with one of the tags in Tagged. Without any of these it goes to the organization's
// defaults. Options apply to Items alone.
type NewDelivery struct {
	sqlstore.DeliveryRow
	Subscribers     bool
	Tagged          []string
	NotBefore       time.Time
	Fingerprint     []byte
	KeyExpires      time.Duration
	Items           []NewItem
	MaxDestinations int // how many destinations it may have
}

// Defaults reports whether the delivery goes to the organization's defaults.
func (d *NewDelivery) Defaults() bool { return len(d.Items) == 0 && !d.selects() }

func (d *NewDelivery) selects() bool { return d.Subscribers || len(d.Tagged) > 0 }

// NewItem is an item of a NewDelivery. Its number is its place, counted from 1.
type NewItem struct {
	Destination string
	Priority    int
	NotBefore   time.Time
}

// Enqueued is the outcome of a NewDelivery.
type Enqueued struct {
	Items   []EnqueuedItem
	Missing []string // destinations that do not exist, see NoteMissing; if any, nothing was inserted
	Taken   bool     // its idempotency key is taken, so it was not inserted
}

// EnqueuedItem is an inserted item.
type EnqueuedItem struct {
	N           int
	Destination string
	Fallback    bool // it stands in for the primary defaults
}

// NoteMissing lists in each result the destinations of items that were not found. It adds "" to a
// delivery that names no destination and has none, and to one that has more than it may.
func NoteMissing(batch []NewDelivery, results []Enqueued, found []map[string]bool) {
	for i, d := range batch {
		r := &results[i]
		for _, item := range d.Items {
			if !found[i][item.Destination] {
				r.Missing = append(r.Missing, item.Destination)
			}
		}
		if len(r.Items) == 0 && len(d.Items) == 0 || len(r.Items) > d.MaxDestinations {
			r.Missing = append(r.Missing, "")
		}
	}
}

// Withdraw removes a delivery that Enqueue has inserted in the same transaction.
func Withdraw(ctx context.Context, tx *sqlstore.Tx, organization, delivery string) error {
	for _, from := range []string{
		`delivery_queue where organization_id = $1 and delivery_id = $2`,
		`delivery_deliveries where organization_id = $1 and id = $2`,
		`delivery_idempotency where organization_id = $1 and delivery_id = $2`,
	} {
		if _, err := tx.Exec(ctx, `delete from `+from, organization, delivery); err != nil {
			return err
		}
	}
	return nil
}

// TakenKey reads the delivery that holds an idempotency key, and whether it went to a fallback.
func TakenKey(
	ctx context.Context, tx *sqlstore.Tx, organization, key string,
) (delivery string, fingerprint []byte, fallback bool, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		return rows.Scan(&delivery, &fingerprint, &fallback)
	}, `select k.delivery_id, k.fingerprint, coalesce((select d.fallback from delivery_deliveries d
			where d.organization_id = k.organization_id and d.id = k.delivery_id), $3)
		from delivery_idempotency k where k.organization_id = $1 and k.key = $2`, organization, key, false)
	return delivery, fingerprint, fallback, err
}
