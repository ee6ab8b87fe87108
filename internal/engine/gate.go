package engine

import (
	"context"
	"math"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// gate is what a claim may still take of a destination that is limited over all processes. Its row is locked until the
// claim commits, so that no other process counts the same room.
type gate struct {
	kind   sqlstore.Gate
	left   int
	rate   float64 // of the bucket; 0: none
	tokens float64
	at     time.Time // when it held that many
	used   int
}

// newGate says what a destination of these limits may be given, with so many items in flight.
func newGate(l destination.Limits, state sqlstore.GateState, inFlight int) *gate {
	g := &gate{kind: sqlstore.Limited, left: math.MaxInt, at: state.Now}
	if l.Concurrency > 0 {
		g.left = max(0, l.Concurrency-inFlight)
	}
	if l.Ordered {
		g.kind, g.left = sqlstore.Ordered, min(g.left, max(0, 1-inFlight))
	}
	if l.PerSecond > 0 {
		size := float64(l.Burst)
		if l.Burst == 0 {
			size = max(1, math.Ceil(l.PerSecond))
		}
		g.rate, g.tokens = l.PerSecond, size
		if !state.TokensAt.IsZero() {
			g.tokens = min(size, state.Tokens+l.PerSecond*max(0, state.Now.Sub(state.TokensAt).Seconds()))
		}
		g.left = min(g.left, int(g.tokens+tokenDust))
	}
	return g
}

// tokenDust is what rounding may take from a token: a clock that is moved on to the very moment when one is due must
// find it.
const tokenDust = 1e-6

// take notes that so many were claimed.
func (g *gate) take(n int) {
	g.left -= n
	g.used += n
}

// wait is how long it takes until the bucket holds a token again; 0 where it does, or where there is none.
func (g *gate) wait() time.Duration {
	missing := 1 - tokenDust - (g.tokens - float64(g.used))
	if g.rate == 0 || missing <= 0 {
		return 0
	}
	return time.Duration(math.Ceil((missing + tokenDust) / g.rate * float64(time.Second)))
}

// gates are those that a claim has looked at, by destination; nil for one that another process has locked.
type gates map[int64]*gate

// lock adds the gates of the lanes whose destinations are limited.
func (e *Engine) lock(ctx context.Context, tx *sqlstore.Tx, lanes []int64, infos map[int64]*lane, all gates) error {
	limited := map[int64]string{}
	for _, l := range lanes {
		no := sqlstore.DestinationOf(l)
		if _, seen := all[no]; !seen && e.limits(infos[no]).Gated() {
			limited[no] = infos[no].Organization
		}
	}
	if len(limited) == 0 {
		return nil
	}
	states, err := tx.LockGates(ctx, limited)
	if err != nil {
		return err
	}
	for no := range limited {
		all[no] = nil
	}
	nos := make([]int64, len(states))
	for i, s := range states {
		nos[i] = s.No
	}
	if len(nos) == 0 {
		return nil
	}
	inFlight, err := e.Store.InFlight(ctx, tx, nos)
	if err != nil {
		return err
	}
	for _, s := range states {
		all[s.No] = newGate(e.limits(infos[s.No]), s, inFlight[s.No])
	}
	return nil
}

func (e *Engine) limits(l *lane) destination.Limits { return l.target.Limits.Or(e.Limits) }

// allowed cuts shares to what the gates let through.
func (g gates) allowed(asked []sqlstore.Share) []sqlstore.Share {
	kept := asked[:0]
	for _, s := range asked {
		if gate, limited := g[sqlstore.DestinationOf(s.Lane)]; limited {
			if gate == nil || gate.left <= 0 {
				continue
			}
			s.N, s.Gate = min(s.N, gate.left), gate.kind
		}
		kept = append(kept, s)
	}
	return kept
}

// open keeps the lanes that may be asked for more.
func (g gates) open(lanes []int64) []int64 {
	kept := lanes[:0]
	for _, l := range lanes {
		if gate, limited := g[sqlstore.DestinationOf(l)]; !limited || gate != nil && gate.left > 0 {
			kept = append(kept, l)
		}
	}
	return kept
}

// settle writes what the claim took of the buckets, and returns how long it is until one of them has a token again for
// which items may wait; 0 where none is empty.
func (g gates) settle(ctx context.Context, tx *sqlstore.Tx) (wait time.Duration, err error) {
	for no, gate := range g {
		if gate == nil || gate.rate == 0 {
			continue
		}
		if w := gate.wait(); w > 0 && (wait == 0 || w < wait) {
			wait = w
		}
		if gate.used > 0 {
			if err := tx.TakeTokens(ctx, no, gate.tokens-float64(gate.used), gate.at); err != nil {
				return 0, err
			}
		}
	}
	return wait, nil
}
