package delivery

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// collect removes payloads that no delivery refers to, and that are old enough for none to come.
func (s *DeliveryService) collect(ctx context.Context, chores *Chores) error {
	return s.outside(ctx, "payloads", 10*time.Minute, func(ctx context.Context) error {
		for after := time.Unix(0, 0); !after.IsZero(); {
			var unused []sqlstore.UnusedPayload
			var next time.Time
			err := s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
				unused, next, err = tx.CondemnPayloads(ctx, after, tx.Now.Add(-stagedLifetime), batch/10)
				return err
			}, sqlstore.Again)
			if err != nil {
				return err
			}
			left := 0
			for _, p := range unused {
				if p.StoreKey != "" {
					if s.settings.Payloads == nil {
						left++ // for a process that has the store
						continue
					}
					if err := engine.Drop(ctx, s.store, s.settings.Payloads, p.Organization, p.ID, p.StoreKey); err != nil {
						return err
					}
				}
				chores.PayloadsDropped++
			}
			if left > 0 && next.Equal(after) {
				return nil // a page of what stays
			}
			after = next
		}
		return nil
	})
}

// collectOrphans removes what is in the store and belongs to no payload: what a crash left between the two.
func (s *DeliveryService) collectOrphans(ctx context.Context, chores *Chores) error {
	store := s.settings.Payloads
	if store == nil {
		return nil
	}
	return s.outside(ctx, "payload orphans", time.Hour, func(ctx context.Context) error {
		prefix, err := engine.StorePrefix(ctx, s.store)
		if err != nil {
			return err
		}
		var page []string
		settle := func() error {
			var known map[string]bool
			err := s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
				known, err = tx.KnownKeys(ctx, page)
				return err
			})
			var orphans []string
			for _, key := range page {
				if !known[key] {
					orphans = append(orphans, key)
				}
			}
			page = page[:0]
			if err != nil || len(orphans) == 0 {
				return err
			}
			chores.OrphansDropped += len(orphans)
			return store.Delete(ctx, orphans...)
		}
		err = store.List(ctx, stagedLifetime, func(key string) error {
			if !strings.HasPrefix(key, prefix) {
				return nil // another database's
			}
			if page = append(page, key); len(page) < batch {
				return nil
			}
			return settle()
		})
		return errors.Join(err, settle())
	})
}

// outside runs a chore that does more than transactions, within the time of its lease, if it is due and no other process is
// at it.
func (s *DeliveryService) outside(ctx context.Context, name string, every time.Duration, run func(ctx context.Context) error) error {
	leased, err := s.lease(ctx, name, every)
	if err != nil || !leased {
		return err
	}
	within, cancel := context.WithTimeout(ctx, choreLease)
	defer cancel()
	return errors.Join(run(within), s.finishChore(ctx, name))
}
