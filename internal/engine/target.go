package engine

import (
	"context"
	"sync"
	"time"

	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// target is a destination that is ready for use: its config is opened and parsed, once per version.
type target struct {
	*sqlstore.DestinationRow
	typ    *settings.Type
	config any
}

// targets caches destinations. One that this process cannot make ready rests for a while: its items
// are left to other processes, or to a time when the key or the handler is back.
type targets struct {
	mu      sync.Mutex
	ready   map[int64]*target
	resting map[int64]rest
}

type rest struct {
	version int64
	until   time.Time
}

const (
	maxTargets = 20_000
	restTime   = 30 * time.Second
)

// get returns a destination in a version, nil if it is not there.
func (t *targets) get(no, version int64) *target {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := t.ready[no]; d != nil && d.Version == version {
		return d
	}
	return nil
}

func (t *targets) isResting(no, version int64, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.resting[no]
	if !ok {
		return false
	}
	if r.version != version || !r.until.After(now) {
		delete(t.resting, no)
		return false
	}
	return true
}

// put stores d and returns the destinations that it replaces or crowds out.
func (t *targets) put(d *target) (gone []*target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.ready[d.No]; old != nil {
		gone = append(gone, old)
	}
	t.ready[d.No] = d
	for no, old := range t.ready {
		if len(t.ready) <= maxTargets {
			break
		}
		if no != d.No {
			delete(t.ready, no)
			gone = append(gone, old)
		}
	}
	return gone
}

func (t *targets) rest(no, version int64, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resting[no] = rest{version, until}
}

// load makes destinations ready: it reads them, then opens and parses their configs. One that
// cannot be made ready is logged and rests.
func (e *Engine) load(ctx context.Context, nos []int64) error {
	var rows []*sqlstore.DestinationRow
	err := e.Store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		rows, err = tx.DestinationsByNo(ctx, nos)
		return err
	})
	if err != nil {
		return err
	}
	for _, row := range rows {
		typ := e.Types[row.Type]
		if typ == nil {
			continue
		}
		if row.Deleted { // while an item for it was being accepted
			if err := e.cancelAll(ctx, row); err != nil {
				return err
			}
			continue
		}
		config, err := e.configs.Open(ctx, typ, row)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			e.targets.rest(row.No, row.Version, e.Now().Add(restTime))
			e.Logger.ErrorContext(ctx, "delivery: a destination cannot be used by this process; its items wait",
				"organization", row.Organization, "destination", row.ID, "type", row.Type, "error", err)
			continue
		}
		for _, gone := range e.targets.put(&target{row, typ, config}) {
			if err := gone.typ.Forget(gone.ID); err != nil {
				e.Logger.ErrorContext(ctx, "delivery: a handler failed to forget a destination",
					"organization", gone.Organization, "destination", gone.ID, "type", gone.Type, "error", err)
			}
		}
	}
	return nil
}

// cancelAll cancels what waits for a destination.
func (e *Engine) cancelAll(ctx context.Context, d *sqlstore.DestinationRow) error {
	for n := 1; n > 0; {
		err := e.Store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			n, err = e.Store.CancelPending(ctx, tx, d.Organization, "", d.No, queue.DestinationGone)
			return err
		}, Committed: sqlstore.Again})
		if err != nil {
			return err
		}
	}
	return nil
}
