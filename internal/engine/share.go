package engine

import (
	"cmp"
	"slices"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// shares divides a claim of total items over lanes, an equal part for each and what is left over for the first ones; no
// lane gets none. With more lanes than items, the last lanes wait for the next claim.
func shares(lanes []int64, total int) []sqlstore.Share {
	lanes = lanes[:min(len(lanes), max(0, total))]
	all := make([]sqlstore.Share, len(lanes))
	for i, lane := range lanes {
		all[i] = sqlstore.Share{Lane: lane, N: total / len(lanes)}
		if i < total%len(lanes) {
			all[i].N++
		}
	}
	return all
}

// hungry returns the lanes that gave their whole part, and so may have more.
func hungry(asked []sqlstore.Share, got map[int64]int) []int64 {
	var lanes []int64
	for _, s := range asked {
		if got[s.Lane] >= s.N {
			lanes = append(lanes, s.Lane)
		}
	}
	return lanes
}

// interleave puts items in the order in which they are to be started: the first of each lane, then the second of each,
// lanes in the order they were claimed in.
func interleave(items []sqlstore.Claimed) []sqlstore.Claimed {
	var lanes []int64
	byLane := map[int64][]sqlstore.Claimed{}
	for _, c := range items {
		if _, seen := byLane[c.Lane]; !seen {
			lanes = append(lanes, c.Lane)
		}
		byLane[c.Lane] = append(byLane[c.Lane], c)
	}
	for _, of := range byLane {
		slices.SortFunc(of, func(a, b sqlstore.Claimed) int { return cmp.Compare(a.Seq, b.Seq) })
	}
	all := make([]sqlstore.Claimed, 0, len(items))
	for i := 0; len(all) < len(items); i++ {
		for _, lane := range lanes {
			if i < len(byLane[lane]) {
				all = append(all, byLane[lane][i])
			}
		}
	}
	return all
}
