package engine_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/internal/engine"
)

// Whatever comes and goes: no destination is over its threshold when it is given a worker, one that
// may be served is served, destinations take turns, and each keeps its own order.
func TestDispatcherIsFair(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		workers := rapid.IntRange(1, 40).Draw(t, "workers")
		d := engine.NewDispatcher(workers)
		next, last := map[int64]int64{}, map[int64]int64{}
		waiting, running := map[int64]int{}, map[int64]int{}
		var held []engine.Job
		total := 0
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				no := rapid.Int64Range(1, 5).Draw(t, "destination")
				n := rapid.IntRange(1, 10).Draw(t, "jobs")
				d.Put(no, next[no]+1, n)
				next[no] += int64(n)
				waiting[no] += n
			},
			"take": func(t *rapid.T) {
				if total == workers {
					t.Skip("no worker is free")
				}
				free := workers - total
				j := d.Take()
				may := false
				for no, n := range waiting {
					may = may || n > 0 && (workers < 8 || running[no] == 0 || running[no]+1 <= 3*(free-1))
				}
				if j == nil {
					if may {
						t.Fatalf("nothing is given out with %d free, waiting %v, running %v", free, waiting, running)
					}
					return
				}
				no, seq := j.Of()
				if workers >= 8 && running[no] > 0 && running[no]+1 > 3*(free-1) {
					t.Fatalf("destination %d gets a worker beside %d of its own with %d free", no, running[no], free)
				}
				if seq != last[no]+1 {
					t.Fatalf("destination %d: %d after %d", no, seq, last[no])
				}
				last[no] = seq
				waiting[no]--
				running[no]++
				total++
				held = append(held, j)
			},
			"done": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing is running")
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "job")
				no, _ := held[i].Of()
				d.Done(held[i])
				held = append(held[:i], held[i+1:]...)
				running[no]--
				total--
			},
		})
	})
}

func TestOneDestinationLeavesAQuarter(t *testing.T) {
	t.Parallel()
	for workers, want := range map[int]int{1: 1, 2: 2, 7: 7, 8: 6, 64: 48, 2000: 1500} {
		d := engine.NewDispatcher(workers)
		d.Put(1, 1, 3*workers)
		n := 0
		for n < workers && d.Take() != nil {
			n++
		}
		if n != want {
			t.Errorf("of %d workers one destination gets %d, want %d", workers, n, want)
		}
	}
}

// A destination is stalled as long as none of what waits for it is started, and then it is given
// nothing more.
func TestStalledDestinationsAreGivenNothing(t *testing.T) {
	t.Parallel()
	d := engine.NewDispatcher(8)
	look := func(want int, wantStalled bool) {
		t.Helper()
		if n, stalled := d.Waits(1); n != want || stalled != wantStalled {
			t.Errorf("%d wait, stalled is %t, want %d and %t", n, stalled, want, wantStalled)
		}
	}
	look(0, false)
	d.Put(1, 1, 3)
	look(3, true)
	j := d.Take()
	look(2, false)
	look(2, true)
	d.Done(j)
	look(2, true)
	d.Take()
	d.Take()
	look(0, false)

	for _, c := range []struct {
		limit, lanes, waiting int
		stalled               bool
		want                  int
	}{
		{100, 1, 0, false, 75}, {100, 2, 0, false, 43}, {100, 1, 100, false, 50}, {100, 1, 300, false, 0},
		{100, 1, 1, true, 0}, {100, 10, 1, true, 0},
	} {
		if got := engine.Allowance(c.limit, c.lanes, c.waiting, c.stalled); got != c.want {
			t.Errorf("%+v gives %d", c, got)
		}
	}
}

// Outcomes gather while others are attempted, up to a batch that is worth a transaction, and not
// where an item in strict order waits for one of them.
func TestOutcomesGather(t *testing.T) {
	t.Parallel()
	plain := make([]bool, 1000)
	last := make([]bool, 50)
	last[49] = true
	for name, c := range map[string]struct {
		ordered        []bool
		busy, stopping bool
		least, most    int
	}{
		"nothing else is attempted": {[]bool{false}, false, false, 1, 1},
		"enough":                    {plain, true, false, 200, 1000},
		"in strict order":           {[]bool{true}, true, false, 1, 1},
		"in strict order, at last":  {last, true, false, 50, 50},
		"the pass ends":             {[]bool{false}, true, true, 1, 1},
	} {
		if n := engine.Collect(c.ordered, c.busy, c.stopping); n < c.least || n > c.most {
			t.Errorf("%s: %d outcomes", name, n)
		}
	}
}

// At the end of a pass, jobs that wait behind attempts which hold all workers are handed out too.
func TestFlushIgnoresThresholds(t *testing.T) {
	t.Parallel()
	for _, flush := range []bool{false, true} {
		d := engine.NewDispatcher(8)
		d.Put(1, 1, 10)
		for d.Take() != nil {
		}
		d.Close(flush)
		if got := d.Take() != nil; got != flush {
			t.Errorf("with flush %t, a job is handed out: %t", flush, got)
		}
	}
}
