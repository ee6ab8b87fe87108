package engine_test

import (
	"slices"
	"testing"

	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/queuestore"
)

func TestFloors(t *testing.T) {
	t.Parallel()
	var f engine.Floors
	open := func(no int64) bool { return no != 7 }
	claim := func(lane, seq int64) queuestore.Claimed { return queuestore.Claimed{Lane: lane, Seq: seq} }
	f.Raise([]queuestore.Claimed{claim(3, 10), claim(3, 12), claim(3, 11), claim(5, 4), claim(7, 1)}, open)
	f.Raise([]queuestore.Claimed{claim(5, 2)}, open)
	if known := f.Known(); !slices.Equal(known, []int64{3, 5}) || f.Seq(3) != 13 || f.Seq(5) != 5 || f.Seq(7) != 0 {
		t.Errorf("known %v, floors %d, %d, %d", known, f.Seq(3), f.Seq(5), f.Seq(7))
	}
	for lane := int64(100); lane < 100+256; lane++ {
		f.Raise([]queuestore.Claimed{claim(lane, 1)}, open)
	}
	if known := f.Known(); len(known) != 256 || slices.Contains(known, 3) || slices.Contains(known, 5) {
		t.Errorf("%d known: %v", len(known), known)
	}
	for range 2000 {
		f.Raise([]queuestore.Claimed{claim(100, 2)}, open)
	}
	if known := f.Known(); !slices.Equal(known, []int64{100}) {
		t.Errorf("those that gave nothing for long are still known: %v", known)
	}
}
