package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

const (
	ringSteps   = 8   // walks over lanes that are blocked or another process's, before a claim takes what it has
	fromLowest  = 8   // every so many claims start at the lowest priority, so that nothing starves
	mostLanes   = 500 // in one walk
	refillTries = 3   // further parts for lanes that gave their whole part
)

// lane is what a claim knows of a destination; target is nil where its items cannot be claimed.
type lane struct {
	sqlstore.LaneInfo
	target *target
}

// claimer chooses what is claimed next. It is used by one goroutine at a time.
type claimer struct {
	mu      sync.Mutex
	cursors [sqlstore.Lowest + 1]int64 // the last lane served, per rank
	claims  int
}

// claim leases up to limit items. held tells how many items of a destination the process holds already. unknown lists destinations that must be loaded before their items can be claimed; wait is
// how long it takes until a rate lets more through, 0 if none is used up.
func (e *Engine) claim(ctx context.Context, limit int, held func(no int64) int) (jobs []job, unknown []int64, wait time.Duration, err error) {
	c := &e.claimer
	c.mu.Lock()
	defer c.mu.Unlock()
	lowestFirst := c.claims%fromLowest == fromLowest-1
	var items []sqlstore.Claimed
	var infos map[int64]*lane
	var cursors [sqlstore.Lowest + 1]int64
	err = e.Store.Lease(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		items, unknown = nil, nil
		infos = map[int64]*lane{}
		bounds := newBounds(held)
		cursors = c.cursors
		ranks, err := e.Store.Ranks(ctx, tx)
		if err != nil || len(ranks) == 0 {
			return err
		}
		if lowestFirst {
			slices.Reverse(ranks)
		}
		for _, rank := range ranks {
			got, missing, err := e.claimRank(ctx, tx, rank, &cursors[rank], limit-len(items), infos, bounds)
			if err != nil {
				return err
			}
			items, unknown = append(items, got...), append(unknown, missing...)
			if len(items) >= limit {
				break
			}
		}
		wait, err = bounds.settle(ctx, tx)
		return err
	})
	if err != nil {
		return nil, nil, 0, err
	}
	c.cursors = cursors
	if len(items) > 0 { // what finds nothing is no turn
		c.claims++
	}
	jobs = make([]job, len(items))
	for i, item := range items {
		info := infos[sqlstore.DestinationOf(item.Lane)]
		jobs[i] = job{Claimed: item, destination: info.target, failures: info.Failures}
	}
	return jobs, unknown, wait, nil
}

// claimRank walks the lanes of a rank as a ring from its cursor and claims a fair share of each.
func (e *Engine) claimRank(ctx context.Context, tx *sqlstore.Tx, rank int64, cursor *int64, limit int, infos map[int64]*lane, bounds *bounds) (items []sqlstore.Claimed, unknown []int64, err error) {
	start, end := sqlstore.Lane(rank, 0), sqlstore.Lane(rank+1, 0)-1
	if *cursor < start || *cursor > end {
		*cursor = start
	}
	want := min(limit, mostLanes)
	from, to, wrapped := *cursor, end, false
	var lanes []int64
	for range ringSteps {
		room := want - len(lanes)
		walked, err := e.Store.Walk(ctx, tx, from, to, room)
		if err != nil {
			return nil, nil, err
		}
		usable, missing, err := e.usable(ctx, tx, walked, infos)
		if err != nil {
			return nil, nil, err
		}
		lanes, unknown = append(lanes, usable...), append(unknown, missing...)
		switch {
		case len(lanes) >= want:
		case len(walked) == room: // there may be more in this part of the ring
			from = walked[len(walked)-1]
			continue
		case !wrapped && *cursor > start:
			from, to, wrapped = start, *cursor, true
			continue
		}
		break
	}
	if len(lanes) == 0 {
		if !wrapped { // everything on the way was unusable: go on behind it
			*cursor = from
		}
		return nil, unknown, nil
	}
	*cursor = lanes[min(len(lanes), limit)-1]
	bounds.begin(limit, len(lanes))
	if err := e.lock(ctx, tx, lanes, infos, bounds); err != nil {
		return nil, nil, err
	}
	lease := tx.Now.Add(e.Lease)
	asked := bounds.cut(shares(bounds.open(lanes), limit))
	for try := 0; len(asked) > 0; try++ {
		part, err := e.Store.Claim(ctx, tx, asked, lease)
		if err != nil {
			return nil, nil, err
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
	return interleave(items), unknown, nil
}

// usable keeps the lanes that this process may claim now.
func (e *Engine) usable(ctx context.Context, tx *sqlstore.Tx, lanes []int64, infos map[int64]*lane) (usable, unknown []int64, err error) {
	nos := make([]int64, 0, len(lanes))
	for _, l := range lanes {
		if no := sqlstore.DestinationOf(l); infos[no] == nil {
			nos = append(nos, no)
		}
	}
	if len(nos) > 0 {
		read, err := tx.LaneInfos(ctx, nos)
		if err != nil {
			return nil, nil, err
		}
		for no, info := range read {
			infos[no] = &lane{info, e.targets.get(no, info.Version)}
		}
	}
	for _, l := range lanes {
		info := infos[sqlstore.DestinationOf(l)]
		switch {
		case info == nil, e.Types[info.Type] == nil, info.BlockedUntil.After(tx.Now), e.targets.isResting(info.No, info.Version, e.Now()):
		case info.target == nil:
			unknown = append(unknown, info.No)
		default:
			usable = append(usable, l)
		}
	}
	return usable, unknown, nil
}

// sweep makes due items ready and ends what ran out of time. It returns how many items it moved, and how long it is until
// more fall due: a day at most. count is told of each item that it ended or took from a lost lease.
func (e *Engine) sweep(ctx context.Context, count func(*sqlstore.Outcome)) (moved int, until time.Duration, err error) {
	for {
		n := 0
		var ended []*sqlstore.Outcome
		err := e.Store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			due, err := e.Store.Due(ctx, tx, tx.Now, sweepBatch)
			if err != nil {
				return err
			}
			expired, err := e.Store.Expired(ctx, tx, tx.Now, sweepBatch)
			if err != nil {
				return err
			}
			overdue, err := e.Store.Overdue(ctx, tx, tx.Now, sweepBatch)
			if err != nil {
				return err
			}
			n = due + len(expired) + len(overdue)
			if ended, err = e.settle(ctx, tx, expired, overdue); err != nil {
				return err
			}
			next, err := tx.NextDue(ctx)
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
		e.tell(ended)
		if n < sweepBatch {
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
	_, err = tx.Finish(ctx, outcomes)
	return outcomes, err
}

// Next returns when something falls due that is not ready yet, zero if nothing will.
func (e *Engine) Next(ctx context.Context) (at time.Time, err error) {
	err = e.Store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		at, err = tx.NextDue(ctx)
		return err
	})
	return at, err
}
