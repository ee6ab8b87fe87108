package engine_test

import (
	"context"
	"testing"

	"github.com/deliverykit/delivery/internal/engine"
)

// An engine without an observer spends no memory on it.
func TestNoObserverCostsNothing(t *testing.T) {
	u := engine.NewUnobserved()
	if n := testing.AllocsPerRun(1000, func() { u.Observe(t.Context()) }); n != 0 {
		t.Errorf("%v allocations for each attempt", n)
	}
}

func BenchmarkNoObserver(b *testing.B) {
	u := engine.NewUnobserved()
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		u.Observe(ctx)
	}
}
