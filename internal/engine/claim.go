package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

const (
	ringSteps   = 8   // walks over lanes that cannot be claimed, before a claim takes what it has
	fromLowest  = 8   // one in so many claims starts at the lowest priority, so that nothing starves
	maxLanes    = 500 // in one walk
	refillTries = 3   // further parts for lanes that gave their whole part
)

// claimer chooses what is claimed next. Its lock is held for the whole of a claim, also while that
// waits for the database.
type claimer struct {
	mu     sync.Mutex
	rings  rings
	floors floors
	looks  looks
	claims int
}

// rings are how far the walks over the lanes have come, by rank.
type rings [queuestore.Lowest + 1]ring

type ring struct {
	cursor int64 // the last lane served
	laps   int   // passes over the end since something was claimed or loaded, or all lanes were looked at
}

// claimed is what a claim found.
type claimed struct {
	jobs    []job
	unknown []int64       // destinations that must be loaded before their items can be claimed
	wait    time.Duration // until a rate or a breaker lets more through; 0: none holds any back
	more    bool          // it claimed nothing of a rank that has lanes which it did not look at
}

// claim leases up to limit items. waits returns how many items of a destination wait for a worker
// of the process already, and whether none of them was started of late. With exact, a claim that
// finds nothing proves that there was nothing.
func (e *Engine) claim(
	ctx context.Context, limit int, waits func(no int64) (n int, stalled bool), exact bool,
) (claimed, error) {
	c := &e.claimer
	c.mu.Lock()
	defer c.mu.Unlock()
	policy := e.Policy()
	whole := exact || c.looks.whole()
	var run *claim
	err := e.Store.CommitRelaxed(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		run = &claim{
			e: e, tx: tx, policy: policy, limit: limit, lease: newLease(), rings: c.rings,
			lanes: map[int64]*lane{}, bounds: newBounds(policy, waits),
		}
		if !whole {
			run.known, run.floors = c.floors.known(), c.floors.lanes
		}
		return run.do(ctx, c.claims%fromLowest == fromLowest-1)
	})
	if err != nil {
		return claimed{}, err
	}
	if whole {
		c.looks.took(run.looked, e.SlowLook)
	} else if len(run.items) == 0 {
		run.wait = sooner(run.wait, max(time.Millisecond, time.Until(c.looks.wholeAt))) // for the whole look
	}
	c.learn(run)
	return claimed{jobs: run.jobs(), unknown: run.unknown, wait: run.wait, more: run.more}, nil
}

// learn notes what a committed claim means for the next one.
func (c *claimer) learn(run *claim) {
	c.rings = run.rings
	if len(run.items) > 0 || len(run.unknown) > 0 || !run.more {
		for rank := range c.rings {
			c.rings[rank].laps = 0
		}
	}
	c.floors.raise(run.items, func(no int64) bool {
		_, gated := run.bounds.gates[no]
		return !gated
	})
	if len(run.items) > 0 { // a claim that finds nothing is not a turn
		c.claims++
	}
}

// claim is one run of the transaction that claims. A transaction that is run again makes a new one.
type claim struct {
	e      *Engine
	tx     *sqlstore.Tx
	policy *settings.Policy
	limit  int
	lease  int64 // of what it claims
	rings  rings // as the walks move them on

	// Of a partial look; none in a whole one.
	known  []int64
	floors map[int64]floor

	lanes  map[int64]*lane // by destination
	bounds *bounds
	looked time.Duration // how long its looks for lanes took

	// What it found; see claimed.
	items   []queuestore.Claimed
	unknown []int64
	wait    time.Duration
	more    bool
}

// lane is what a claim knows of a destination.
type lane struct {
	queuestore.LaneInfo
	target *target // nil where the process does not know the destination in this version
}

// do claims a fair share of what is ready, rank by rank.
func (c *claim) do(ctx context.Context, lowestFirst bool) error {
	ranks, err := c.ranks(ctx)
	if err != nil || len(ranks) == 0 {
		return err
	}
	if lowestFirst {
		slices.Reverse(ranks)
	}
	for _, rank := range ranks {
		if err := c.claimRank(ctx, rank); err != nil {
			return err
		}
		if len(c.items) >= c.limit {
			break
		}
	}
	if len(c.items) > 0 {
		if err := queuestore.Grant(ctx, c.tx, c.lease, c.items, c.tx.Now.Add(c.e.Lease)); err != nil {
			return err
		}
	}
	wait, err := c.bounds.writeGates(ctx, c.tx)
	c.wait = sooner(c.wait, wait)
	return err
}

// ranks lists the ranks that may have ready items.
func (c *claim) ranks(ctx context.Context) (all []int64, err error) {
	defer func(began time.Time) { c.looked += time.Since(began) }(time.Now())
	var has [len(c.rings)]bool
	for _, lane := range c.known {
		has[queuestore.RankOf(lane)] = true
	}
	var unknown []int64
	for rank := range has {
		if !has[rank] {
			unknown = append(unknown, int64(rank))
		}
	}
	found, err := c.e.Store.Ranks(ctx, c.tx, unknown)
	for _, rank := range found {
		has[rank] = true
	}
	for rank := range has {
		if has[rank] {
			all = append(all, int64(rank))
		}
	}
	return all, err
}

func (c *claim) claimRank(ctx context.Context, rank int64) error {
	lanes, around, err := c.walk(ctx, rank)
	if err != nil {
		return err
	}
	before := len(c.items)
	if err := c.claimLanes(ctx, lanes); err != nil {
		return err
	}
	c.more = c.more || !around && len(c.items) == before && c.rings[rank].laps < 2
	return nil
}

// walk lists lanes of a rank that may be claimed now: as a ring, from its cursor on. It moves the
// cursor to the last lane that is to be served. Where it lists as many as the claim has room for,
// or most lanes are held, it does not come around, and the next call goes on.
func (c *claim) walk(ctx context.Context, rank int64) (lanes []int64, around bool, err error) {
	r := &c.rings[rank]
	start, end := queuestore.Lane(rank, 0), queuestore.Lane(rank+1, 0)-1
	if r.cursor < start || r.cursor > end {
		r.cursor = start
	}
	limit := c.limit - len(c.items)
	want := min(limit, maxLanes)
	from, to := r.cursor, end
	wrapped := r.cursor == start
	for range ringSteps {
		room := want - len(lanes)
		began := time.Now()
		walked, err := c.e.Store.Walk(ctx, c.tx, from, to, room, c.known)
		c.looked += time.Since(began)
		if err != nil {
			return nil, false, err
		}
		usable, err := c.usable(ctx, walked)
		if err != nil {
			return nil, false, err
		}
		if lanes = append(lanes, usable...); len(lanes) >= want {
			break
		}
		if len(walked) == room { // there may be more in this part of the ring
			from = walked[len(walked)-1]
			continue
		}
		if around = wrapped; around {
			break
		}
		from, to, wrapped = start, r.cursor, true
		r.laps++
	}
	switch {
	case len(lanes) > 0:
		r.cursor = lanes[min(len(lanes), limit)-1]
	case !around:
		r.cursor = from
	}
	return lanes, around, nil
}

// usable keeps the lanes that this process may claim now, and notes what it would take to use the
// others.
func (c *claim) usable(ctx context.Context, lanes []int64) (usable []int64, err error) {
	if err := c.read(ctx, lanes); err != nil {
		return nil, err
	}
	for _, l := range lanes {
		info := c.lanes[queuestore.DestinationOf(l)]
		switch {
		case info == nil, c.e.Types[info.Type] == nil, c.e.targets.isResting(info.No, info.Version, c.e.Now()):
		case info.Held(c.tx.Now):
			if !info.Paused && !info.ProbeAt.IsZero() {
				c.wait = sooner(c.wait, info.ProbeAt.Sub(c.tx.Now))
			}
		case info.target == nil:
			c.unknown = append(c.unknown, info.No)
		default:
			usable = append(usable, l)
		}
	}
	return usable, nil
}

// read reads the destinations of lanes that the claim has not seen yet.
func (c *claim) read(ctx context.Context, lanes []int64) error {
	nos := make([]int64, 0, len(lanes))
	for _, l := range lanes {
		if no := queuestore.DestinationOf(l); c.lanes[no] == nil {
			nos = append(nos, no)
		}
	}
	if len(nos) == 0 {
		return nil
	}
	infos, err := queuestore.LaneInfos(ctx, c.tx, nos)
	if err != nil {
		return err
	}
	for no, info := range infos {
		c.lanes[no] = &lane{info, c.e.targets.get(no, info.Version)}
	}
	return nil
}

// claimLanes claims a fair share of each lane of a rank.
func (c *claim) claimLanes(ctx context.Context, lanes []int64) error {
	limit := c.limit - len(c.items)
	c.bounds.begin(limit, len(lanes))
	if err := c.lockGates(ctx, lanes); err != nil {
		return err
	}
	var items []queuestore.Claimed
	asked := c.bounds.cut(shares(c.bounds.open(lanes), limit))
	for try := 0; len(asked) > 0; try++ {
		for i := range asked {
			if asked[i].Gate == queuestore.Open {
				asked[i].Floor = c.floors[asked[i].Lane].seq
			}
		}
		part, err := c.e.Store.Claim(ctx, c.tx, asked, c.lease)
		if err != nil {
			return err
		}
		items = append(items, part...)
		got := map[int64]int{}
		for i := range part {
			got[part[i].Lane]++
		}
		for l, n := range got {
			c.bounds.take(l, n)
		}
		more := c.bounds.open(hungry(asked, got))
		if len(items) >= limit || len(more) == 0 || try == refillTries {
			break
		}
		asked = c.bounds.cut(shares(more, limit-len(items)))
	}
	c.items = append(c.items, interleave(items)...)
	return nil
}

// jobs returns what was claimed, under one lease.
func (c *claim) jobs() []job {
	under := &lease{id: c.lease, claimed: time.Now(), left: len(c.items)}
	jobs := make([]job, len(c.items))
	for i, item := range c.items {
		no := queuestore.DestinationOf(item.Lane)
		info, gate := c.lanes[no], c.bounds.gates[no]
		jobs[i] = job{
			Claimed: item, lease: under, policy: c.policy, destination: info.target,
			ailing:  info.Failures > 0 || info.Breaker != retry.Closed,
			ordered: gate != nil && gate.kind == queuestore.Ordered,
		}
	}
	return jobs
}

// sooner is the shorter of two waits, where 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}
