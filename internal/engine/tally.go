package engine

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// tally adds up the outcomes of attempts until they are written. If a process dies before, only the
// statistics miss them: the attempts are the truth.
type tally struct {
	mu      sync.Mutex
	minutes map[tallied]*queuestore.Minute
}

type tallied struct {
	no int64
	at int64 // minutes since 1970
}

// add counts the outcomes that were applied; nil stands for all of them.
func (t *tally) add(outcomes []*queuestore.Outcome, applied []bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.minutes == nil {
		t.minutes = map[tallied]*queuestore.Minute{}
	}
	for i, o := range outcomes {
		if applied != nil && !applied[i] {
			continue
		}
		key := tallied{o.No, o.EndedAt.Unix() / 60}
		m := t.minutes[key]
		if m == nil {
			m = &queuestore.Minute{No: o.No, Organization: o.Organization, At: o.EndedAt.Truncate(time.Minute)}
		}
		if m.Add(o) {
			t.minutes[key] = m
		}
	}
}

// take returns what was added since the last call.
func (t *tally) take() []*queuestore.Minute {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*queuestore.Minute, 0, len(t.minutes))
	for _, m := range t.minutes {
		all = append(all, m)
	}
	clear(t.minutes)
	return all
}

// restore puts back minutes that could not be written.
func (t *tally) restore(minutes []*queuestore.Minute) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range minutes {
		key := tallied{m.No, m.At.Unix() / 60}
		if sum := t.minutes[key]; sum != nil {
			sum.Merge(m)
		} else {
			t.minutes[key] = m
		}
	}
}

const (
	flushEvery    = time.Second
	flushedAtOnce = 1000 // rows a second
	flushTimeout  = 5 * time.Second
)

// pause is how long statistics wait until they are written. It grows with their number, so that
// they do not become the main work of the database when there are many destinations.
func (t *tally) pause() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return flushEvery * time.Duration(max(1, len(t.minutes)/flushedAtOnce))
}

// flush writes the statistics.
func (e *Engine) flush(ctx context.Context) {
	minutes := e.tally.take()
	if len(minutes) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	err := e.Store.CommitRelaxed(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		return queuestore.AddMinutes(ctx, tx, minutes)
	})
	if err != nil {
		e.tally.restore(minutes)
		e.Logger.WarnContext(ctx, "delivery: statistics could not be written; they are tried again", "error", err)
	}
}

// presence is what other processes know of this one: that it attempts items, and of which types.
type presence struct {
	mu   sync.Mutex
	id   string
	last time.Time
}

const presentEvery = 30 * time.Second

// Seen is the age up to which a note of presence counts. A process that calls ProcessDue less often
// is taken to be away.
const Seen = 10 * time.Minute

// present notes that this process attempts items, now and then.
func (e *Engine) present(ctx context.Context) {
	p := &e.presence
	p.mu.Lock()
	now := e.Now()
	if !p.last.IsZero() && now.Sub(p.last) < presentEvery || len(e.Types) == 0 {
		p.mu.Unlock()
		return
	}
	p.last = now
	if p.id == "" {
		p.id = uuid.NewString()
	}
	id := p.id
	p.mu.Unlock()
	types := make([]string, 0, len(e.Types))
	for name := range e.Types {
		types = append(types, name)
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	err := e.Store.CommitRelaxed(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		return queuestore.Present(ctx, tx, id, types)
	})
	if err != nil && ctx.Err() == nil {
		e.Logger.WarnContext(ctx, "delivery: this process could not note that it is there", "error", err)
	}
}
