package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/spool"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// Engine claims, attempts and records items. Many goroutines may use it at once, and passes may
// overlap.
type Engine struct {
	*settings.Settings
	Store   *queuestore.Store
	bus     *events.Bus
	configs *configs.Configs
	spool   *spool.Spool

	claimer  claimer
	sweeper  sweeper
	targets  targets
	tally    tally
	presence presence
	wake     chan struct{} // has room for one
	ended    broadcast
}

// New returns an engine that does nothing yet.
func New(s *settings.Settings, store *queuestore.Store, bus *events.Bus) *Engine {
	return &Engine{
		Settings: s, Store: store, bus: bus, configs: configs.New(&s.Fixed), spool: spool.New(store.Store, s.Payloads),
		wake:    make(chan struct{}, 1),
		targets: targets{ready: map[int64]*target{}, resting: map[int64]rest{}},
	}
}

// Wake makes a running loop look for items now.
func (e *Engine) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Ended returns a channel that is closed when an item next ends in this process.
func (e *Engine) Ended() <-chan struct{} { return e.ended.next() }

// announce wakes the callers that wait for an item to end, if one of the outcomes is an end.
func (e *Engine) announce(outcomes []*queuestore.Outcome) {
	for _, o := range outcomes {
		if o.State.Ended() {
			e.ended.send()
			return
		}
	}
}

// report logs and publishes changes of the health of destinations.
func (e *Engine) report(changes []queuestore.HealthChange) {
	publish := func(c queuestore.HealthChange, kind event.Kind, reason string) {
		e.bus.Publish(event.Event{Kind: kind, Organization: c.Organization, Destination: c.Destination, Reason: reason})
	}
	for _, c := range changes {
		log := e.Logger.With("organization", c.Organization, "destination", c.Destination)
		switch c.Verdict {
		case queuestore.Opened:
			log.Warn("delivery: the breaker of a destination opens; its items wait",
				"failures", c.Failures, "until", c.Until)
			publish(c, event.BreakerOpened, fmt.Sprintf("%d failures in a row", c.Failures))
		case queuestore.GivenUp:
			log.Warn("delivery: a destination is disabled; its items are held until it is enabled",
				"reason", c.Disabled)
			publish(c, event.DestinationDisabled, c.Disabled)
		case queuestore.Recovered:
			log.Info("delivery: the breaker of a destination closes", "enabled", c.Enabled)
			publish(c, event.BreakerClosed, "")
			if c.Enabled {
				publish(c, event.DestinationEnabled, "it was seen to be well again")
			}
		}
	}
}

// broadcast wakes everyone that waits.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// Counts is what a pass did.
type Counts struct {
	GateAt time.Time // when a rate lets more items through; zero if none holds any back

	Attempts, Delivered, Retrying, Dead atomic.Int64
}

func (c *Counts) add(o *queuestore.Outcome) {
	if o.Took != sqlstore.NotBegun && o.Reason != queue.Released {
		c.Attempts.Add(1)
	}
	switch o.State {
	case queue.Delivered:
		c.Delivered.Add(1)
	case queue.Dead:
		c.Dead.Add(1)
	case queue.Scheduled:
		c.Retrying.Add(1)
	}
}

// Pass works until nothing is due: it sweeps, claims and attempts. When ctx ends it stops as Run
// does, and returns ctx's error.
func (e *Engine) Pass(ctx context.Context) (*Counts, error) {
	p := e.newPipeline(ctx)
	err := p.claimUntilIdle(ctx)
	p.stop(ctx.Err() != nil)
	p.counts.GateAt = p.gateAt
	return &p.counts, errors.Join(err, ctx.Err())
}

// Run works until ctx ends. Then it starts nothing more, waits for the attempts in flight up to the
// shutdown timeout, and releases the rest. All that it started has ended when it returns, except
// for handlers that ignore their context.
func (e *Engine) Run(ctx context.Context) {
	p := e.newPipeline(ctx)
	p.claimForever(ctx)
	p.stop(true)
}
