package engine

import (
	"context"
	"math"
	"slices"
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

// wait is how long it takes until the bucket holds a token again; 0 where it does, or where there is none.
func (g *gate) wait() time.Duration {
	missing := 1 - tokenDust - (g.tokens - float64(g.used))
	if g.rate == 0 || missing <= 0 {
		return 0
	}
	return time.Duration(math.Ceil((missing + tokenDust) / g.rate * float64(time.Second)))
}

// bounds are what a claim may take of each destination: what this process may hold more of it, and what its gate lets
// through.
type bounds struct {
	holds func(no int64) int // items of a destination
	held  map[int64]int      // the same, as it was when the claim first asked: or a lower rank might find room that a higher had not
	taken map[int64]int      // by this claim
	gates map[int64]*gate    // of limited destinations; nil for one that another process has locked

	// Of the rank that is being claimed.
	room, lanes int
	left        map[int64]int
}

func newBounds(holds func(no int64) int) *bounds {
	return &bounds{holds: holds, held: map[int64]int{}, taken: map[int64]int{}, gates: map[int64]*gate{}}
}

// begin turns to a rank with so many lanes, which are to share so much room.
func (b *bounds) begin(room, lanes int) { b.room, b.lanes, b.left = room, lanes, map[int64]int{} }

// allowance is how many more items of a destination may be held: so many that it holds no more than remains free when the
// others take as many. So there is always room for those that come later, however slow these are.
func (b *bounds) allowance(no int64) int {
	held, seen := b.held[no]
	if !seen {
		held = b.holds(no)
		b.held[no] = held
	}
	free := b.room - held - b.taken[no]
	return max(0, (free+b.lanes)/(b.lanes+1))
}

// lock adds the gates of the lanes whose destinations are limited.
func (e *Engine) lock(ctx context.Context, tx *sqlstore.Tx, lanes []int64, infos map[int64]*lane, b *bounds) error {
	limited := map[int64]string{}
	for _, l := range lanes {
		no := sqlstore.DestinationOf(l)
		if _, seen := b.gates[no]; !seen && e.limits(infos[no]).Gated() {
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
		b.gates[no] = nil
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
		b.gates[s.No] = newGate(e.limits(infos[s.No]), s, inFlight[s.No])
	}
	return nil
}

func (e *Engine) limits(l *lane) destination.Limits { return l.target.Limits.Or(e.Limits) }

// of returns how many items of a lane may be taken, and through which gate.
func (b *bounds) of(l int64) (int, sqlstore.Gate) {
	no := sqlstore.DestinationOf(l)
	left, seen := b.left[no]
	if !seen {
		left = b.allowance(no)
		b.left[no] = left
	}
	gate, limited := b.gates[no]
	switch {
	case !limited:
		return left, sqlstore.Open
	case gate == nil:
		return 0, sqlstore.Limited
	}
	return min(left, gate.left), gate.kind
}

// open keeps the lanes that may be asked for more.
func (b *bounds) open(lanes []int64) []int64 {
	return slices.DeleteFunc(lanes, func(l int64) bool {
		n, _ := b.of(l)
		return n <= 0
	})
}

// cut bounds the shares of open lanes.
func (b *bounds) cut(asked []sqlstore.Share) []sqlstore.Share {
	for i := range asked {
		n, gate := b.of(asked[i].Lane)
		asked[i].N, asked[i].Gate = min(asked[i].N, n), gate
	}
	return asked
}

// take notes that n items of a lane were claimed.
func (b *bounds) take(l int64, n int) {
	no := sqlstore.DestinationOf(l)
	b.left[no] -= n
	b.taken[no] += n
	if gate := b.gates[no]; gate != nil {
		gate.left -= n
		gate.used += n
	}
}

// settle writes what the claim took of the buckets, and returns how long it is until one of those that are empty has a
// token again; 0 where none is.
func (b *bounds) settle(ctx context.Context, tx *sqlstore.Tx) (wait time.Duration, err error) {
	for no, gate := range b.gates {
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
