package combine_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/deliverykit/delivery/internal/combine"
)

// double is a group whose transactions double numbers, each transaction when the test lets it.
type double struct {
	combine.Group[int, int]
	begun chan struct{}
	open  chan struct{}
	fail  func(items []int) error

	mu    sync.Mutex
	sizes []int
	alone atomic.Int64
}

var errUnknown = errors.New("unknown outcome")

func newDouble() *double {
	d := &double{begun: make(chan struct{}, 100), open: make(chan struct{})}
	d.Together = func(ctx context.Context, board func() []int) ([]int, error) {
		d.begun <- struct{}{}
		select {
		case <-d.open:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		items := board()
		if again := board(); !slices.Equal(items, again) {
			return nil, errors.New("a second look boarded others")
		}
		d.mu.Lock()
		d.sizes = append(d.sizes, len(items))
		d.mu.Unlock()
		if d.fail != nil {
			if err := d.fail(items); err != nil {
				return nil, err
			}
		}
		results := make([]int, len(items))
		for i, n := range items {
			results[i] = 2 * n
		}
		return results, nil
	}
	d.Alone = func(_ context.Context, n int) (int, error) {
		d.alone.Add(1)
		if n < 0 {
			return 0, errors.New("negative")
		}
		return 2 * n, nil
	}
	d.Room = func(int) func(int) bool {
		n := 1
		return func(int) bool { n++; return n <= 8 }
	}
	d.Shared = func(err error) bool { return errors.Is(err, errUnknown) }
	d.Own = func(error) bool { return true }
	return d
}

// Calls that come while a transaction runs share the next ones, and each gets its own result.
func TestCallsShareTransactions(t *testing.T) {
	t.Parallel()
	d := newDouble()
	var wg sync.WaitGroup
	for n := range 40 {
		wg.Go(func() {
			if got, err := d.Do(t.Context(), n); err != nil || got != 2*n {
				t.Errorf("%d gave %d, %v", n, got, err)
			}
		})
	}
	<-d.begun
	close(d.open)
	wg.Wait()
	total := 0
	for _, n := range d.sizes {
		if total += n; n > 8 {
			t.Errorf("a transaction took %d calls", n)
		}
	}
	if total != 40 || d.alone.Load() != 0 {
		t.Errorf("%d calls took part, %d went alone", total, d.alone.Load())
	}
}

// One call that makes a shared transaction fail costs the others nothing but a transaction of their
// own.
func TestOneFailureIsNotEverybodys(t *testing.T) {
	t.Parallel()
	d := newDouble()
	d.fail = func(items []int) error {
		if slices.Min(items) < 0 {
			return errors.New("negative")
		}
		return nil
	}
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			if n == 7 {
				n = -7
			}
			got, err := d.Do(t.Context(), n)
			if n < 0 && err == nil || n >= 0 && (err != nil || got != 2*n) {
				t.Errorf("%d gave %d, %v", n, got, err)
			}
		})
	}
	<-d.begun
	close(d.open)
	wg.Wait()
}

// After an unknown outcome nobody tries again: it may have taken effect.
func TestUnknownOutcomeIsShared(t *testing.T) {
	t.Parallel()
	d := newDouble()
	d.fail = func([]int) error { return errUnknown }
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			if _, err := d.Do(t.Context(), n); !errors.Is(err, errUnknown) {
				t.Errorf("%d: %v", n, err)
			}
		})
	}
	<-d.begun
	close(d.open)
	wg.Wait()
	if d.alone.Load() != 0 {
		t.Errorf("%d calls tried again", d.alone.Load())
	}
}

// A call whose context ends while it waits is not handled; the others are.
func TestCallThatGivesUp(t *testing.T) {
	t.Parallel()
	d := newDouble()
	var wg sync.WaitGroup
	wg.Go(func() {
		if got, err := d.Do(t.Context(), 1); err != nil || got != 2 {
			t.Errorf("%d, %v", got, err)
		}
	})
	<-d.begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Do(ctx, 2); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(d.open)
	wg.Wait()
	if slices.Contains(d.sizes, 2) {
		t.Errorf("transactions took %v", d.sizes)
	}
}

// Where a transaction takes long, a call that has waited for a while makes one of its own.
func TestLongTransactionHoldsNobody(t *testing.T) {
	t.Parallel()
	d := newDouble()
	var wg sync.WaitGroup
	for n := range 2 {
		wg.Go(func() {
			if _, err := d.Do(t.Context(), n); err != nil {
				t.Error(err)
			}
		})
	}
	<-d.begun
	<-d.begun // though the first has not ended
	close(d.open)
	wg.Wait()
}
