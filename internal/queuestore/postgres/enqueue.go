package postgres

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

const maxResolves = 10

// Enqueue implements [queuestore.Native]. It resolves again if a destination was deleted after it
// was chosen.
func (d Native) Enqueue(
	ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []queuestore.NewDelivery,
) ([]queuestore.Enqueued, error) {
	for range maxResolves {
		resolved, err := queuestore.Resolve(ctx, d, tx, organization, now, batch)
		if err != nil {
			return nil, err
		}
		results, err := insert(ctx, tx, organization, now, resolved)
		if err != nil || !overtaken(batch, results) {
			return results, err
		}
	}
	return nil, errors.New("the organization keeps deleting destinations while a delivery is being stored")
}

// overtaken reports whether a destination is missing that no delivery names: Resolve chose it, and
// then it was deleted.
func overtaken(batch []queuestore.NewDelivery, results []queuestore.Enqueued) bool {
	for i, r := range results {
		for _, id := range r.Missing {
			named := slices.ContainsFunc(batch[i].Items, func(item queuestore.NewItem) bool {
				return item.Destination == id
			})
			if id != "" && !named {
				return true
			}
		}
	}
	return false
}

// insert inserts a batch whose destinations are resolved.
func insert(
	ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []queuestore.NewDelivery,
) ([]queuestore.Enqueued, error) {
	query, args, err := enqueue(organization, now, batch)
	if err != nil {
		return nil, err
	}
	results := make([]queuestore.Enqueued, len(batch))
	found := make([]map[string]bool, len(batch))
	taken := make([]bool, len(batch))
	complete := possible(batch)
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var i, n int
		var there, fresh bool
		if err := rows.Scan(&i, &n, &there, &fresh); err != nil {
			return err
		}
		item := queuestore.EnqueuedItem{N: n, Destination: batch[i-1].Items[n-1].Destination}
		complete = complete && there
		if there {
			if found[i-1] == nil {
				found[i-1] = map[string]bool{}
			}
			found[i-1][item.Destination] = true
			results[i-1].Items = append(results[i-1].Items, item)
		}
		taken[i-1] = taken[i-1] || !fresh
		return nil
	}, query, args...)
	if err != nil {
		return nil, err
	}
	if !complete {
		queuestore.NoteMissing(batch, results, found)
		return results, nil
	}
	for i := range results {
		results[i].Items, results[i].Taken = wanted(&batch[i]), taken[i]
	}
	return results, nil
}

// possible reports whether each delivery has destinations, and not too many.
func possible(batch []queuestore.NewDelivery) bool {
	return !slices.ContainsFunc(batch, func(d queuestore.NewDelivery) bool {
		return len(d.Items) == 0 || len(d.Items) > d.MaxDestinations
	})
}

// wanted returns the items that a delivery gets if nothing is missing.
func wanted(d *queuestore.NewDelivery) []queuestore.EnqueuedItem {
	items := make([]queuestore.EnqueuedItem, len(d.Items))
	for k, item := range d.Items {
		items[k] = queuestore.EnqueuedItem{N: k + 1, Destination: item.Destination, Fallback: d.Fallback}
	}
	return items
}
