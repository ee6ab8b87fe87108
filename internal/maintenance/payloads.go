package maintenance

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/spool"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// stagedLifetime is how long a payload waits for a delivery that refers to it.
const stagedLifetime = 24 * time.Hour

// collectPayloads removes payloads that no delivery refers to and that are old enough for none to
// come.
func collectPayloads(s *spool.Spool, objects payload.Store) Chore {
	return Chore{Name: "payloads", Every: 10 * time.Minute, Network: true, Do: func(ctx context.Context, r *Run) error {
		for after := time.Unix(0, 0); !after.IsZero(); {
			var unused []spool.Unused
			var next time.Time
			err := r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
				unused, next, err = spool.Condemn(ctx, tx, after, tx.Now.Add(-stagedLifetime), batchSize/10)
				return err
			}, Committed: sqlstore.Again})
			if err != nil {
				return err
			}
			left, err := dropPayloads(ctx, r, s, objects, unused)
			if err != nil || left > 0 && next.Equal(after) { // a page of payloads that stay
				return err
			}
			after = next
		}
		return nil
	}}
}

// dropPayloads removes condemned payloads, and returns how many it left to a process that has the
// payload store.
func dropPayloads(
	ctx context.Context, r *Run, s *spool.Spool, objects payload.Store, unused []spool.Unused,
) (left int, err error) {
	for _, p := range unused {
		if p.StoreKey != "" && objects == nil {
			left++
			continue
		}
		if p.StoreKey != "" {
			if err := s.Drop(ctx, p.Organization, p.ID, p.StoreKey); err != nil {
				return left, err
			}
		}
		r.Count(&r.Report.PayloadsDropped, 1)
	}
	return left, nil
}

// collectOrphans removes objects in the payload store that belong to no payload: a crash between
// the two left them.
func collectOrphans(s *spool.Spool, objects payload.Store) Chore {
	return Chore{Name: "payload orphans", Every: time.Hour, Network: true, Do: func(ctx context.Context, r *Run) error {
		prefix, err := s.Prefix(ctx)
		if err != nil {
			return err
		}
		var page []string
		drop := func() error {
			orphans, err := unknownKeys(ctx, r, page)
			page = page[:0]
			if err != nil || len(orphans) == 0 {
				return err
			}
			r.Count(&r.Report.OrphansDropped, len(orphans))
			return objects.Delete(ctx, orphans...)
		}
		err = objects.List(ctx, stagedLifetime, func(key string) error {
			if !strings.HasPrefix(key, prefix) {
				return nil // another database's
			}
			if page = append(page, key); len(page) < batchSize {
				return nil
			}
			return drop()
		})
		return errors.Join(err, drop())
	}}
}

func unknownKeys(ctx context.Context, r *Run, keys []string) (unknown []string, err error) {
	var known map[string]bool
	err = r.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		known, err = spool.KnownKeys(ctx, tx, keys)
		return err
	})
	for _, key := range keys {
		if !known[key] {
			unknown = append(unknown, key)
		}
	}
	return unknown, err
}
