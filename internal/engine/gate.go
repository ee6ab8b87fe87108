package engine

import (
	"context"
	"math"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

// gate is what a claim may still take of a destination that is limited over all processes. Its row
// is locked until the claim commits, so that no other process counts the same room.
type gate struct {
	kind    queuestore.Gate
	probing bool // items are taken to find out whether the destination is well again
	left    int
	rate    float64 // of the bucket, in tokens a second; 0: there is no bucket
	tokens  float64
	at      time.Time // when the bucket held that many
	used    int
}

// newGate returns how much a destination may be given with inFlight items in flight: by its limits,
// and by its breaker while that is half-open or lets out items that it held.
func newGate(
	l destination.Limits, b retry.Breaker, info *queuestore.LaneInfo, state queuestore.GateState, inFlight int,
) *gate {
	g := &gate{kind: queuestore.Limited, left: math.MaxInt, at: state.Now}
	if l.Concurrency > 0 {
		g.left = max(0, l.Concurrency-inFlight)
	}
	if l.Ordered {
		g.kind, g.left = queuestore.Ordered, min(g.left, max(0, 1-inFlight))
	}
	if info.Breaker != retry.Closed {
		probes := b.Probes
		if info.Disabled {
			probes = 1
		}
		g.probing, g.left = true, min(g.left, max(0, probes-inFlight))
	}
	rate, burst := l.PerSecond, l.Burst
	if info.CatchUpTo > 0 && b.CatchUpPerSecond > 0 && (rate <= 0 || b.CatchUpPerSecond < rate) {
		rate, burst = b.CatchUpPerSecond, 0
	}
	if rate > 0 {
		g.fill(rate, burst, state)
	}
	return g
}

// fill gives the gate a bucket, with the tokens that it holds by now.
func (g *gate) fill(rate float64, burst int, state queuestore.GateState) {
	size := float64(burst)
	if burst == 0 {
		size = max(1, math.Ceil(rate))
	}
	g.rate, g.tokens = rate, size
	if !state.TokensAt.IsZero() {
		g.tokens = min(size, state.Tokens+rate*max(0, state.Now.Sub(state.TokensAt).Seconds()))
	}
	g.left = min(g.left, int(g.tokens+tokenDust))
}

// tokenDust is what rounding may take from a token: a clock that is moved on to the very moment
// when one is due must find it.
const tokenDust = 1e-6

// wait is how long it takes until the bucket holds a token again; 0 if it holds one, or if there is
// no bucket.
func (g *gate) wait() time.Duration {
	missing := 1 - tokenDust - (g.tokens - float64(g.used))
	if g.rate == 0 || missing <= 0 {
		return 0
	}
	return time.Duration(math.Ceil((missing + tokenDust) / g.rate * float64(time.Second)))
}

// lockGates locks the gates of the lanes whose destinations are limited, and adds them to the
// bounds.
func (c *claim) lockGates(ctx context.Context, lanes []int64) error {
	b := c.bounds
	limited := map[int64]string{}
	for _, l := range lanes {
		no := queuestore.DestinationOf(l)
		if _, seen := b.gates[no]; !seen && b.gated(c.lanes[no]) {
			limited[no] = c.lanes[no].Organization
		}
	}
	if len(limited) == 0 {
		return nil
	}
	states, err := c.e.Store.LockGates(ctx, c.tx, limited)
	if err != nil {
		return err
	}
	for no := range limited {
		b.gates[no] = nil
	}
	locked := make(map[int64]string, len(states))
	for _, s := range states {
		locked[s.No] = limited[s.No]
	}
	if len(locked) == 0 {
		return nil
	}
	inFlight, err := c.e.Store.InFlight(ctx, c.tx, locked)
	if err != nil {
		return err
	}
	if err := c.readBreakers(ctx, locked); err != nil {
		return err
	}
	for _, s := range states {
		if err := c.openGate(ctx, s, inFlight[s.No]); err != nil {
			return err
		}
	}
	return c.lockOrganizations(ctx, locked)
}

// openGate adds a locked gate, unless its destination is held.
func (c *claim) openGate(ctx context.Context, state queuestore.GateState, inFlight int) error {
	info, b := c.lanes[state.No], c.bounds
	if info.Held(c.tx.Now) {
		return nil
	}
	if info.CatchUpTo > 0 {
		if err := caughtUp(ctx, c.tx, info); err != nil {
			return err
		}
	}
	b.gates[state.No] = newGate(
		b.limits(info), info.target.Breaker.Or(b.policy.Breaker), &info.LaneInfo, state, inFlight,
	)
	return nil
}

// readBreakers reads the state of breakers that are not closed once more, now that the items in
// flight have been counted: a probe that ended between the first look and the count has decided
// whether there is to be another.
func (c *claim) readBreakers(ctx context.Context, locked map[int64]string) error {
	var probing []int64
	for no := range locked {
		if c.lanes[no].Breaker != retry.Closed {
			probing = append(probing, no)
		}
	}
	if len(probing) == 0 {
		return nil
	}
	now, err := queuestore.LaneInfos(ctx, c.tx, probing)
	for no, info := range now {
		c.lanes[no].LaneInfo = info
	}
	return err
}

// caughtUp forgets that a breaker held items once none of them is left.
func caughtUp(ctx context.Context, tx *sqlstore.Tx, info *lane) error {
	left, err := queuestore.CatchingUp(ctx, tx, info.No, info.CatchUpTo)
	if err != nil || left {
		return err
	}
	err = queuestore.CaughtUp(ctx, tx, info.No, info.CatchUpTo)
	info.CatchUpTo = 0
	return err
}

// lockOrganizations adds to the bounds what room the owners of destinations have left, if the
// policy limits that.
func (c *claim) lockOrganizations(ctx context.Context, owners map[int64]string) error {
	b := c.bounds
	if c.policy.OrganizationConcurrency == 0 {
		return nil
	}
	var names []string
	for no, name := range owners {
		b.owner[no] = name
		if _, seen := b.room[name]; !seen {
			b.room[name] = 0 // also where another process has it locked
			names = append(names, name)
		}
	}
	locked, err := queuestore.LockOrganizations(ctx, c.tx, names)
	if err != nil {
		return err
	}
	for name := range locked {
		n, err := c.e.Store.InFlightOf(ctx, c.tx, name)
		if err != nil {
			return err
		}
		b.room[name] = max(0, c.policy.OrganizationConcurrency-n)
	}
	return nil
}
