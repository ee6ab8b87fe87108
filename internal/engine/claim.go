package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

const (
	ringSteps   = 8   // walks over lanes that are blocked or another process's, before a claim takes what it has
	fromLowest  = 8   // every so many claims start at the lowest priority, so that nothing starves
	maxLanes    = 500 // in one walk
	refillTries = 3   // further parts for lanes that gave their whole part
)

// lane is what a claim knows of a destination; target is nil where its items cannot be claimed.
type lane struct {
	sqlstore.LaneInfo
	target *target
}

// claimer chooses what is claimed next. It is used by one goroutine at a time.
type claimer struct {
	mu     sync.Mutex
	rings  [sqlstore.Lowest + 1]ring // per rank
	floors floors
	looks  looks
	claims int
}

// ring is how far the walks over the lanes of a rank have come.
type ring struct {
	cursor int64 // the last lane served
	laps   int   // times that the walks came past the end, since something was claimed or loaded, or all lanes were looked at
}

// claimed is what a claim found.
type claimed struct {
	jobs    []job
	unknown []int64       // destinations that must be loaded before their items can be claimed
	wait    time.Duration // how long it is until a rate or a breaker lets more through; 0: none holds any back
	more    bool          // it claimed nothing of a rank that has lanes which it did not look at
}

// look is how a claim looks for lanes: whole, without known ones.
type look struct {
	known []int64
	floor map[int64]floor
	took  time.Duration
}

// ranks lists the ranks that may have ready items.
func (e *Engine) ranks(ctx context.Context, tx *sqlstore.Tx, l *look) ([]int64, error) {
	defer func(began time.Time) { l.took += time.Since(began) }(time.Now())
	var has [sqlstore.Lowest + 1]bool
	for _, lane := range l.known {
		has[sqlstore.RankOf(lane)] = true
	}
	var unknown, all []int64
	for rank := range has {
		if !has[rank] {
			unknown = append(unknown, int64(rank))
		}
	}
	found, err := e.Store.Ranks(ctx, tx, unknown)
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

// claim leases up to limit items. waits tells how many items of a destination wait for a worker of the process already, and
// whether none of them was started of late. With exact, what it does not find was not there.
func (e *Engine) claim(ctx context.Context, limit int, waits func(no int64) (n int, stalled bool), exact bool) (claimed, error) {
	c := &e.claimer
	c.mu.Lock()
	defer c.mu.Unlock()
	var l look
	whole := exact || c.looks.whole()
	lowestFirst := c.claims%fromLowest == fromLowest-1
	var got claimed
	var items []sqlstore.Claimed
	var infos map[int64]*lane
	var bounds *bounds
	var rings [sqlstore.Lowest + 1]ring
	var id int64
	policy := e.Policy()
	err := e.Store.Lease(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		got, items, l, id = claimed{}, nil, look{}, newLease()
		if !whole {
			l.known, l.floor = c.floors.known(), c.floors.lanes
		}
		infos = map[int64]*lane{}
		bounds = newBounds(policy, waits)
		rings = c.rings
		ranks, err := e.ranks(ctx, tx, &l)
		if err != nil || len(ranks) == 0 {
			return err
		}
		if lowestFirst {
			slices.Reverse(ranks)
		}
		for _, rank := range ranks {
			r := &rings[rank]
			lanes, around, err := e.walk(ctx, tx, rank, r, limit-len(items), infos, &l, &got)
			if err != nil {
				return err
			}
			of, err := e.claimLanes(ctx, tx, lanes, limit-len(items), infos, bounds, l.floor, id)
			if err != nil {
				return err
			}
			got.more = got.more || !around && len(of) == 0 && r.laps < 2
			if items = append(items, of...); len(items) >= limit {
				break
			}
		}
		if len(items) > 0 {
			if err := tx.Grant(ctx, id, items, tx.Now.Add(e.Lease)); err != nil {
				return err
			}
		}
		wait, err := bounds.settle(ctx, tx)
		got.wait = sooner(got.wait, wait)
		return err
	})
	if err != nil {
		return claimed{}, err
	}
	if len(items) > 0 || len(got.unknown) > 0 || !got.more {
		for rank := range rings {
			rings[rank].laps = 0
		}
	}
	c.rings = rings
	if whole {
		c.looks.took(l.took, e.SlowLook)
	} else if len(items) == 0 {
		got.wait = sooner(got.wait, max(time.Millisecond, time.Until(c.looks.wholeAt))) // for the whole look
	}
	c.floors.raise(items, func(no int64) bool {
		_, gated := bounds.gates[no]
		return !gated
	})
	if len(items) > 0 { // what finds nothing is no turn
		c.claims++
	}
	under := &lease{id: id, claimed: time.Now(), left: len(items)}
	got.jobs = make([]job, len(items))
	for i, item := range items {
		no := sqlstore.DestinationOf(item.Lane)
		info, gate := infos[no], bounds.gates[no]
		got.jobs[i] = job{
			Claimed: item, lease: under, policy: policy, destination: info.target, ailing: info.Failures > 0 || info.Breaker != retry.Closed,
			ordered: gate != nil && gate.kind == sqlstore.Ordered,
		}
	}
	return got, nil
}

// sooner is the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// walk lists lanes of a rank that may be claimed now: as a ring, from its cursor on. It moves the cursor to the last that is
// to be served, and notes in got what it could not use. Where it lists as many as were asked for, or most lanes are held, it
// does not come around, and the next call goes on.
func (e *Engine) walk(ctx context.Context, tx *sqlstore.Tx, rank int64, r *ring, limit int, infos map[int64]*lane, l *look, got *claimed) (lanes []int64, around bool, err error) {
	start, end := sqlstore.Lane(rank, 0), sqlstore.Lane(rank+1, 0)-1
	if r.cursor < start || r.cursor > end {
		r.cursor = start
	}
	want := min(limit, maxLanes)
	from, to := r.cursor, end
	wrapped := r.cursor == start
	for range ringSteps {
		room := want - len(lanes)
		began := time.Now()
		walked, err := e.Store.Walk(ctx, tx, from, to, room, l.known)
		l.took += time.Since(began)
		if err != nil {
			return nil, false, err
		}
		usable, err := e.usable(ctx, tx, walked, infos, got)
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

// claimLanes claims a fair share of each lane of a rank.
func (e *Engine) claimLanes(ctx context.Context, tx *sqlstore.Tx, lanes []int64, limit int, infos map[int64]*lane, bounds *bounds, floors map[int64]floor, lease int64) (items []sqlstore.Claimed, err error) {
	bounds.begin(limit, len(lanes))
	if err := e.lock(ctx, tx, lanes, infos, bounds); err != nil {
		return nil, err
	}
	asked := bounds.cut(shares(bounds.open(lanes), limit))
	for try := 0; len(asked) > 0; try++ {
		for i := range asked {
			if asked[i].Gate == sqlstore.Open {
				asked[i].Floor = floors[asked[i].Lane].seq
			}
		}
		part, err := e.Store.Claim(ctx, tx, asked, lease)
		if err != nil {
			return nil, err
		}
		items = append(items, part...)
		got := map[int64]int{}
		for _, c := range part {
			got[c.Lane]++
		}
		for l, n := range got {
			bounds.take(l, n)
		}
		more := bounds.open(hungry(asked, got))
		if len(items) >= limit || len(more) == 0 || try == refillTries {
			break
		}
		asked = bounds.cut(shares(more, limit-len(items)))
	}
	return interleave(items), nil
}

// usable keeps the lanes that this process may claim now, and notes in got what it would take to use others.
func (e *Engine) usable(ctx context.Context, tx *sqlstore.Tx, lanes []int64, infos map[int64]*lane, got *claimed) (usable []int64, err error) {
	nos := make([]int64, 0, len(lanes))
	for _, l := range lanes {
		if no := sqlstore.DestinationOf(l); infos[no] == nil {
			nos = append(nos, no)
		}
	}
	if len(nos) > 0 {
		read, err := tx.LaneInfos(ctx, nos)
		if err != nil {
			return nil, err
		}
		for no, info := range read {
			infos[no] = &lane{info, e.targets.get(no, info.Version)}
		}
	}
	for _, l := range lanes {
		info := infos[sqlstore.DestinationOf(l)]
		switch {
		case info == nil, e.Types[info.Type] == nil, e.targets.isResting(info.No, info.Version, e.Now()):
		case info.Held(tx.Now):
			if !info.Paused && !info.ProbeAt.IsZero() {
				got.wait = sooner(got.wait, info.ProbeAt.Sub(tx.Now))
			}
		case info.target == nil:
			got.unknown = append(got.unknown, info.No)
		default:
			usable = append(usable, l)
		}
	}
	return usable, nil
}

// sweeper is used by one goroutine at a time.
type sweeper struct {
	mu    sync.Mutex
	looks looks
	floor time.Time // what was due before has been swept
}

// sweep makes due items ready and ends what ran out of time. It returns how many items it moved, and how long it is until
// more fall due: a day at most. count is told of each item that it ended or took from a lost lease. With exact, nothing
// that is due is left.
func (e *Engine) sweep(ctx context.Context, count func(*sqlstore.Outcome), exact bool) (moved int, until time.Duration, err error) {
	s := &e.sweeper
	s.mu.Lock()
	defer s.mu.Unlock()
	whole := exact || s.looks.whole()
	for {
		after := sqlstore.LongAgo
		if !whole {
			after = s.floor
		}
		var now time.Time
		var looked time.Duration
		var more bool
		n := 0
		var ended []*sqlstore.Outcome
		err := e.Store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			began := time.Now()
			due, err := e.Store.Due(ctx, tx, after, tx.Now, sweepBatch)
			if err != nil {
				return err
			}
			expired, err := tx.Expired(ctx, after, sweepBatch)
			if err != nil {
				return err
			}
			overdue, err := e.Store.Overdue(ctx, tx, after, tx.Now, sweepBatch)
			if err != nil {
				return err
			}
			now, looked = tx.Now, time.Since(began)
			n = due + len(expired.Items) + len(overdue)
			if ended, err = e.settle(ctx, tx, expired.Items, overdue); err != nil {
				return err
			}
			dropped, err := tx.DropExpired(ctx, expired)
			if err != nil {
				return err
			}
			more = n >= sweepBatch || expired.More && len(expired.Items)+dropped > 0
			next, err := tx.NextDue(ctx, after)
			if until = next.Sub(tx.Now); next.IsZero() {
				until = 24 * time.Hour
			}
			return err
		}, nil)
		if err != nil {
			return moved, 0, err
		}
		moved += n
		for i := range ended {
			count(ended[i])
		}
		e.tally.add(ended, nil)
		e.announce(ended)
		if !more {
			if whole && n < sweepBatch/10 { // else it is what it moves that takes the time
				s.looks.took(looked, e.SlowLook)
			}
			s.floor = now.Add(-overlap)
			return moved, until, nil
		}
	}
}

const (
	sweepBatch = 1000
	poison     = 3 // leases lost, after which an item is taken to kill its processes
)

// settle finishes items whose lease was lost or whose deadline has passed.
func (e *Engine) settle(ctx context.Context, tx *sqlstore.Tx, expired, overdue []sqlstore.Claimed) ([]*sqlstore.Outcome, error) {
	if len(expired)+len(overdue) == 0 {
		return nil, nil
	}
	all := slices.Concat(expired, overdue)
	nos := make([]int64, len(all))
	for i, c := range all {
		nos[i] = sqlstore.DestinationOf(c.Lane)
	}
	infos, err := tx.LaneInfos(ctx, nos)
	if err != nil {
		return nil, err
	}
	outcomes := make([]*sqlstore.Outcome, len(all))
	for i, c := range all {
		o := &sqlstore.Outcome{No: nos[i]}
		o.Key, o.Destination, o.Took = c.Key, infos[nos[i]].ID, sqlstore.NotBegun
		switch {
		case i >= len(expired), !c.Deadline.IsZero() && !c.Deadline.After(tx.Now):
			o.State, o.Reason = queue.Dead, queue.DeadlinePassed
		case c.Cancel != queue.None:
			o.State, o.Reason = queue.Cancelled, c.Cancel
		case c.Lost+1 >= poison:
			o.State, o.Reason = queue.Dead, queue.Poison
		default:
			o.State, o.Reason, o.Lost = queue.Ready, queue.LeaseLost, true
		}
		outcomes[i] = o
	}
	_, err = tx.Finish(ctx, outcomes) // of all: their rows are locked
	return outcomes, err
}

// Next returns when something falls due that is not ready yet, zero if nothing will.
func (e *Engine) Next(ctx context.Context) (at time.Time, err error) {
	err = e.Store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		at, err = tx.NextDue(ctx, sqlstore.LongAgo)
		return err
	})
	return at, err
}
