package engine

import (
	"cmp"
	"slices"

	"github.com/deliverykit/delivery/internal/queuestore"
)

// shares divides a claim of total items over lanes: an equal part for each, and the remainder for
// the first ones. With more lanes than items, the last lanes wait for the next claim.
func shares(lanes []int64, total int) []queuestore.Share {
	lanes = lanes[:min(len(lanes), max(0, total))]
	all := make([]queuestore.Share, len(lanes))
	for i, lane := range lanes {
		all[i] = queuestore.Share{Lane: lane, N: total / len(lanes)}
		if i < total%len(lanes) {
			all[i].N++
		}
	}
	return all
}

// hungry returns the lanes that gave their whole part, and so may have more.
func hungry(asked []queuestore.Share, got map[int64]int) []int64 {
	var lanes []int64
	for _, s := range asked {
		if got[s.Lane] >= s.N {
			lanes = append(lanes, s.Lane)
		}
	}
	return lanes
}

// interleave puts items in the order in which they are to be started: the first of each lane, then
// the second of each, and so on, with the lanes in the order in which they were claimed.
func interleave(items []queuestore.Claimed) []queuestore.Claimed {
	type place struct{ turn, lane, at int }
	lanes := map[int64]int{} // in the order in which they come
	places := make([]place, len(items))
	for i := range items {
		lane, seen := lanes[items[i].Lane]
		if !seen {
			lane = len(lanes)
			lanes[items[i].Lane] = lane
		}
		places[i] = place{lane: lane, at: i}
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(a.lane-b.lane, cmp.Compare(items[a.at].Seq, items[b.at].Seq))
	})
	for i := range places {
		if i > 0 && places[i].lane == places[i-1].lane {
			places[i].turn = places[i-1].turn + 1
		}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(a.turn-b.turn, a.lane-b.lane) })
	all := make([]queuestore.Claimed, len(items))
	for i, p := range places {
		all[i] = items[p.at]
	}
	return all
}
