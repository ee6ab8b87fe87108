package engine

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// transfer is what the handler of one attempt calls while it sends: it publishes progress, and
// keeps the checkpoint of the item.
type transfer struct {
	ctx       context.Context //nolint:containedctx // Resume takes none: it is the attempt's
	e         *Engine
	j         *job
	began     time.Time
	published atomic.Int64 // when progress was last published, in nanoseconds since began
}

// progressEvery is how often the progress of an attempt is published, first after as much time.
const progressEvery = time.Second

func newTransfer(ctx context.Context, e *Engine, j *job) *transfer {
	return &transfer{ctx: ctx, e: e, j: j, began: time.Now()}
}

func (t *transfer) Progress(done int64) {
	t.j.progress.Store(done)
	last, now := t.published.Load(), int64(time.Since(t.began))
	if now-last < int64(progressEvery) || !t.published.CompareAndSwap(last, now) {
		return
	}
	t.e.bus.Publish(event.Event{
		Kind: event.ItemProgress, Organization: t.j.Organization, Destination: t.j.destination.ID,
		Item: sqlstore.ItemID(t.j.Delivery, t.j.N), Progress: done,
	})
}

func (t *transfer) Resume() (value json.RawMessage, err error) {
	err = t.e.Store.Read(t.ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		value, err = queuestore.Checkpoint(ctx, tx, t.j.Key)
		return err
	})
	return value, err
}

func (t *transfer) Checkpoint(ctx context.Context, value json.RawMessage) error {
	held := false
	err := t.e.Store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		held, err = queuestore.SaveCheckpoint(ctx, tx, t.j.Key, value)
		return err
	}})
	if err == nil && !held {
		err = handler.ErrLeaseLost
	}
	return err
}
