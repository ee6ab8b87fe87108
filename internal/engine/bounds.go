package engine

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

// bounds are what a claim may take of each destination: how much more of it this process may hold,
// and how much its gate lets through.
type bounds struct {
	policy *settings.Policy

	// waits returns how many items of a destination wait for a worker, and whether none of them was
	// started of late. waiting keeps the first answer: a lower rank must not find room that a
	// higher one had not.
	waits   func(no int64) (n int, stalled bool)
	waiting map[int64]int

	taken map[int64]int   // by this claim
	gates map[int64]*gate // of limited destinations; nil if another process has it locked

	// Where the policy limits what an organization has in flight.
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

// begin turns to the next rank, whose lanes share room for limit items.
func (b *bounds) begin(limit, lanes int) { b.limit, b.lanes, b.left = limit, lanes, map[int64]int{} }

// allowance is how many more items of a destination may be claimed: the n, rounded up, with
// waiting+taken+n = perFree * (the room left once every lane of the rank took n). So there is
// always room for lanes that come later, however slow these are. A destination that has not started
// the items that it had is given none: they would only take room.
func (b *bounds) allowance(no int64) int {
	waiting, seen := b.waiting[no]
	if !seen {
		var stalled bool
		if waiting, stalled = b.waits(no); stalled {
			waiting = math.MaxInt32
		}
		b.waiting[no] = waiting
	}
	free, others := perFree*(b.limit-b.taken[no])-waiting-b.taken[no], perFree*b.lanes
	return max(0, (free+others)/(others+1))
}

// gated reports whether claims for a destination have to count what all processes have in flight.
func (b *bounds) gated(l *lane) bool {
	return b.policy.OrganizationConcurrency > 0 || l.Breaker != retry.Closed || l.CatchUpTo > 0 || b.limits(l).Gated()
}

func (b *bounds) limits(l *lane) destination.Limits { return l.target.Limits.Or(b.policy.Limits) }

// of returns how many items of a lane may be taken, and through which gate.
func (b *bounds) of(l int64) (int, queuestore.Gate) {
	no := queuestore.DestinationOf(l)
	left, seen := b.left[no]
	if !seen {
		left = b.allowance(no)
		b.left[no] = left
	}
	gate, limited := b.gates[no]
	switch {
	case !limited:
		return left, queuestore.Open
	case gate == nil:
		return 0, queuestore.Limited
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

// cut bounds the shares of open lanes. All lanes of an organization share the room that it has
// left.
func (b *bounds) cut(asked []queuestore.Share) []queuestore.Share {
	given := map[string]int{}
	for i := range asked {
		n, gate := b.of(asked[i].Lane)
		n = min(n, asked[i].N)
		if owner, limited := b.owner[queuestore.DestinationOf(asked[i].Lane)]; limited {
			n = min(n, b.room[owner]-given[owner])
			given[owner] += n
		}
		asked[i].N, asked[i].Gate = n, gate
	}
	return slices.DeleteFunc(asked, func(s queuestore.Share) bool { return s.N <= 0 })
}

// take notes that n items of a lane were claimed.
func (b *bounds) take(l int64, n int) {
	no := queuestore.DestinationOf(l)
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

// writeGates writes what the claim took from buckets and which probes it began. It returns how long
// it takes until an empty bucket has a token again; 0 if none is empty.
func (b *bounds) writeGates(ctx context.Context, tx *sqlstore.Tx) (wait time.Duration, err error) {
	for _, no := range slices.Sorted(maps.Keys(b.gates)) { // every claim takes row locks in this order
		gate := b.gates[no]
		if gate == nil {
			continue
		}
		if gate.probing && gate.used > 0 {
			if _, err := queuestore.HalfOpen(ctx, tx, no); err != nil {
				return 0, err
			}
		}
		if gate.rate == 0 {
			continue
		}
		wait = sooner(wait, gate.wait())
		if gate.used > 0 {
			if err := queuestore.TakeTokens(ctx, tx, no, gate.tokens-float64(gate.used), gate.at); err != nil {
				return 0, err
			}
		}
	}
	return wait, nil
}
