package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
)

// A transaction that is held open keeps PostgreSQL from removing rows that were claimed and
// finished since, and every walk from the start of a lane steps over all of them. So once whole
// looks have become slow, most looks are partial: they begin where the last ones ended. They find
// all items that have become ready since, but not those that were numbered before and committed
// later. Whole looks go on to find these, at intervals that keep them to a small part of the time.
const (
	wholePer = 50              // of the time, one part for whole looks
	overlap  = 5 * time.Second // of partial sweeps
)

// looks decides when the next look is whole.
type looks struct{ wholeAt time.Time }

// whole reports whether a look now is to be whole.
func (l *looks) whole() bool { return !time.Now().Before(l.wholeAt) }

// took notes how long a whole look took. While whole looks are not slower than slow, all looks are
// whole.
func (l *looks) took(d, slow time.Duration) {
	l.wholeAt = time.Time{}
	if d > slow {
		l.wholeAt = time.Now().Add(wholePer * d)
	}
}

// floors are the numbers from which the busiest lanes may have ready items.
type floors struct {
	lanes map[int64]floor
	turn  int64
}

type floor struct{ seq, turn int64 }

const (
	maxFloors  = 256
	floorTurns = 1000 // claims after which a lane that gave nothing is no longer known
)

// raise notes what a claim took. Gated destinations have no floors: in strict order, an item keeps
// its number when it becomes ready again.
func (f *floors) raise(items []queuestore.Claimed, open func(no int64) bool) {
	if f.lanes == nil {
		f.lanes = map[int64]floor{}
	}
	f.turn++
	for i := range items {
		c := &items[i]
		if !open(queuestore.DestinationOf(c.Lane)) {
			delete(f.lanes, c.Lane)
			continue
		}
		f.lanes[c.Lane] = floor{max(f.lanes[c.Lane].seq, c.Seq+1), f.turn}
	}
	if f.turn%floorTurns == 0 {
		maps.DeleteFunc(f.lanes, func(_ int64, l floor) bool { return l.turn <= f.turn-floorTurns })
	}
	if excess := len(f.lanes) - maxFloors; excess > 0 {
		lanes := slices.SortedFunc(maps.Keys(f.lanes), func(a, b int64) int {
			return int(f.lanes[a].turn - f.lanes[b].turn)
		})
		for _, lane := range lanes[:excess] {
			delete(f.lanes, lane)
		}
	}
}

// known lists the lanes that have floors, ascending.
func (f *floors) known() []int64 { return slices.Sorted(maps.Keys(f.lanes)) }
