package engine

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

// gate is what a claim may still take of a destination that is limited over all processes. Its row is locked until the
// claim commits, so that no other process counts the same room.
type gate struct {
	kind    sqlstore.Gate
	probing bool // what is taken is to see whether the destination is well again
	left    int
	rate    float64 // of the bucket; 0: none
	tokens  float64
	at      time.Time // when it held that many
	used    int
}

// newGate says what a destination may be given, with so many items in flight: by its limits, and by its breaker while that
// is half-open or lets out what was held.
func newGate(l destination.Limits, b retry.Breaker, info *sqlstore.LaneInfo, state sqlstore.GateState, inFlight int) *gate {
	g := &gate{kind: sqlstore.Limited, left: math.MaxInt, at: state.Now}
	if l.Concurrency > 0 {
		g.left = max(0, l.Concurrency-inFlight)
	}
	if l.Ordered {
		g.kind, g.left = sqlstore.Ordered, min(g.left, max(0, 1-inFlight))
	}
	if info.Breaker != retry.Closed {
		probes := b.Probes
		if info.Disabled {
			probes = 1
		}
		g.probing, g.left = true, min(g.left, max(0, probes-inFlight))
	}
	rate, burst := l.PerSecond, l.Burst
	if info.DrainTo > 0 && b.DrainPerSecond > 0 && (rate <= 0 || b.DrainPerSecond < rate) {
		rate, burst = b.DrainPerSecond, 0
	}
	if rate > 0 {
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
	policy *settings.Policy

	waits   func(no int64) (n int, stalled bool) // of a destination: what waits for a worker, and whether none of it was started of late
	waiting map[int64]int                        // the same, as it was when the claim first asked: or a lower rank might find room that a higher had not
	taken   map[int64]int                        // by this claim
	gates   map[int64]*gate                      // of limited destinations; nil for one that another process has locked

	// Of organizations, where what they have in flight is limited.
	owner map[int64]string // of destinations
	room  map[string]int   // that an organization has left

	// Of the rank that is being claimed.
	limit, lanes int
	left         map[int64]int
}

func newBounds(policy *settings.Policy, waits func(no int64) (int, bool)) *bounds {
	return &bounds{
		policy: policy, waits: waits, waiting: map[int64]int{}, taken: map[int64]int{}, gates: map[int64]*gate{},
		owner: map[int64]string{}, room: map[string]int{},
	}
}

// begin turns to a rank with so many lanes, which are to share so much room.
func (b *bounds) begin(limit, lanes int) { b.limit, b.lanes, b.left = limit, lanes, map[int64]int{} }

// allowance is how many more items of a destination may be claimed: so many that no more of it wait than perFree times what
// remains free when the others take as many. So there is always room for those that come later, however slow these are.
// One that has not started what it had is given none: it would only take room.
func (b *bounds) allowance(no int64) int {
	waiting, seen := b.waiting[no]
	if !seen {
		var stalled bool
		if waiting, stalled = b.waits(no); stalled {
			waiting = math.MaxInt32
		}
		b.waiting[no] = waiting
	}
	most, others := perFree*(b.limit-b.taken[no])-waiting-b.taken[no], perFree*b.lanes
	return max(0, (most+others)/(others+1))
}

// lock adds the gates of the lanes whose destinations are limited.
func (e *Engine) lock(ctx context.Context, tx *sqlstore.Tx, lanes []int64, infos map[int64]*lane, b *bounds) error {
	limited := map[int64]string{}
	for _, l := range lanes {
		no := sqlstore.DestinationOf(l)
		if _, seen := b.gates[no]; !seen && b.gated(infos[no]) {
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
	locked := make(map[int64]string, len(states))
	for no := range limited {
		b.gates[no] = nil
	}
	for _, s := range states {
		locked[s.No] = limited[s.No]
	}
	if len(locked) == 0 {
		return nil
	}
	inFlight, err := e.Store.InFlight(ctx, tx, locked)
	if err != nil {
		return err
	}
	if err := lookAgain(ctx, tx, locked, infos); err != nil {
		return err
	}
	for _, s := range states {
		info := infos[s.No]
		if info.Held(tx.Now) {
			continue
		}
		if info.DrainTo > 0 {
			if err := drained(ctx, tx, info); err != nil {
				return err
			}
		}
		b.gates[s.No] = newGate(b.limits(info), info.target.Breaker.Or(b.policy.Breaker), &info.LaneInfo, s, inFlight[s.No])
	}
	return e.lockOrganizations(ctx, tx, locked, b)
}

// lookAgain reads what breakers say, now that what is in flight has been counted: a probe that ended between the first look
// and the count has decided whether there is to be another.
func lookAgain(ctx context.Context, tx *sqlstore.Tx, locked map[int64]string, infos map[int64]*lane) error {
	var probing []int64
	for no := range locked {
		if infos[no].Breaker != retry.Closed {
			probing = append(probing, no)
		}
	}
	if len(probing) == 0 {
		return nil
	}
	now, err := tx.LaneInfos(ctx, probing)
	for no, info := range now {
		infos[no].LaneInfo = info
	}
	return err
}

// gated reports whether claims for a destination need a look at what all processes have in flight.
func (b *bounds) gated(l *lane) bool {
	return b.policy.OrganizationConcurrency > 0 || l.Breaker != retry.Closed || l.DrainTo > 0 || b.limits(l).Gated()
}

// drained looks whether anything is left of what was held.
func drained(ctx context.Context, tx *sqlstore.Tx, info *lane) error {
	left, err := tx.Draining(ctx, info.No, info.DrainTo)
	if err != nil || left {
		return err
	}
	err = tx.Drained(ctx, info.No, info.DrainTo)
	info.DrainTo = 0
	return err
}

// lockOrganizations reads what room the organizations of destinations have left, if that is limited.
func (e *Engine) lockOrganizations(ctx context.Context, tx *sqlstore.Tx, owners map[int64]string, b *bounds) error {
	if b.policy.OrganizationConcurrency == 0 {
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
	locked, err := tx.LockOrganizations(ctx, names)
	if err != nil {
		return err
	}
	for name := range locked {
		n, err := e.Store.InFlightOf(ctx, tx, name)
		if err != nil {
			return err
		}
		b.room[name] = max(0, b.policy.OrganizationConcurrency-n)
	}
	return nil
}

func (b *bounds) limits(l *lane) destination.Limits { return l.target.Limits.Or(b.policy.Limits) }

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
	left = min(left, gate.left)
	if owner, limited := b.owner[no]; limited {
		left = min(left, b.room[owner])
	}
	return left, gate.kind
}

// open keeps the lanes that may be asked for more.
func (b *bounds) open(lanes []int64) []int64 {
	return slices.DeleteFunc(lanes, func(l int64) bool {
		n, _ := b.of(l)
		return n <= 0
	})
}

// cut bounds the shares of open lanes. What an organization has left is for all its lanes together.
func (b *bounds) cut(asked []sqlstore.Share) []sqlstore.Share {
	given := map[string]int{}
	for i := range asked {
		n, gate := b.of(asked[i].Lane)
		n = min(n, asked[i].N)
		if owner, limited := b.owner[sqlstore.DestinationOf(asked[i].Lane)]; limited {
			n = min(n, b.room[owner]-given[owner])
			given[owner] += n
		}
		asked[i].N, asked[i].Gate = n, gate
	}
	return slices.DeleteFunc(asked, func(s sqlstore.Share) bool { return s.N <= 0 })
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
	if owner, limited := b.owner[no]; limited {
		b.room[owner] -= n
	}
}

// settle writes what the claim took of the buckets and which probes it began, and returns how long it is until one of the
// buckets that are empty has a token again; 0 where none is.
func (b *bounds) settle(ctx context.Context, tx *sqlstore.Tx) (wait time.Duration, err error) {
	for _, no := range slices.Sorted(maps.Keys(b.gates)) { // as all do who lock several
		gate := b.gates[no]
		if gate == nil {
			continue
		}
		if gate.probing && gate.used > 0 {
			if _, err := tx.HalfOpen(ctx, no); err != nil {
				return 0, err
			}
		}
		if gate.rate == 0 {
			continue
		}
		wait = sooner(wait, gate.wait())
		if gate.used > 0 {
			if err := tx.TakeTokens(ctx, no, gate.tokens-float64(gate.used), gate.at); err != nil {
				return 0, err
			}
		}
	}
	return wait, nil
}
