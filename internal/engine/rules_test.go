package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestSharesAreEqualAndComplete(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lanes := rapid.SliceOfNDistinct(rapid.Int64Range(1, 1000), 0, 50, rapid.ID[int64]).Draw(t, "lanes")
		total := rapid.IntRange(0, 200).Draw(t, "total")
		all := engine.Shares(lanes, total)
		sum, least, most := 0, total+1, 0
		for i, s := range all {
			if s.Lane != lanes[i] || s.N < 1 {
				t.Fatalf("share %d is %+v", i, s)
			}
			sum, least, most = sum+s.N, min(least, s.N), max(most, s.N)
		}
		if len(lanes) > 0 && sum != total || len(lanes) == 0 && sum != 0 {
			t.Fatalf("%d of %d items are given out", sum, total)
		}
		if len(all) > 0 && most-least > 1 {
			t.Fatalf("shares from %d to %d", least, most)
		}
	})
}

func TestInterleaveTakesTurns(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var items []queuestore.Claimed
		for i, lane := range rapid.SliceOfN(rapid.Int64Range(1, 5), 0, 60).Draw(t, "lanes") {
			items = append(items, queuestore.Claimed{Lane: lane, Seq: int64(i)})
		}
		got := engine.Interleave(rapid.Permutation(items).Draw(t, "order"))
		if len(got) != len(items) {
			t.Fatalf("%d of %d items", len(got), len(items))
		}
		taken, last := map[int64]int{}, map[int64]int64{}
		total := map[int64]int{}
		for _, c := range items {
			total[c.Lane]++
		}
		for _, c := range got {
			if before, ok := last[c.Lane]; ok && before >= c.Seq {
				t.Fatalf("lane %d: %d after %d", c.Lane, c.Seq, before)
			}
			last[c.Lane] = c.Seq
			for lane, n := range taken { // nobody gets an item while another who has more waits two turns
				if taken[c.Lane] > n && n < total[lane] {
					t.Fatalf("lane %d gets its item %d before lane %d got %d", c.Lane, taken[c.Lane]+1, lane, n+1)
				}
			}
			taken[c.Lane]++
		}
	})
}

func TestHungryLanesGaveTheirWholePart(t *testing.T) {
	t.Parallel()
	asked := []queuestore.Share{{Lane: 1, N: 2}, {Lane: 2, N: 2}, {Lane: 3, N: 1}}
	got := engine.Hungry(asked, map[int64]int{1: 2, 2: 1, 3: 1})
	if !slices.Equal(got, []int64{1, 3}) {
		t.Errorf("hungry are %v", got)
	}
}

func TestWhatBecomesOfAnAttempt(t *testing.T) {
	t.Parallel()
	policy := retry.Policy{Retries: 2, First: time.Second, Jitter: -1}.Or(retry.Default())
	plain := errors.New("x")
	ended := func(cause error) error { return fmt.Errorf("%w (%w)", context.Canceled, cause) }
	stopped := fmt.Errorf("x (%w)", handler.ErrShutdown)
	gone := ended(engine.Cancelled(queue.DestinationGone))
	refused := handler.Transient(handler.Fail(handler.Validation, plain))
	for name, c := range map[string]struct {
		attempt int
		err     error
		want    string // state reason charge blame delay
	}{
		"success":               {1, nil, "delivered none false 1 0s"},
		"plain error":           {1, plain, "scheduled backoff true 2 1s"},
		"second failure":        {2, plain, "scheduled backoff true 2 2s"},
		"the last":              {3, plain, "dead retries exhausted false 2 0s"},
		"permanent":             {1, handler.Permanent(plain), "dead permanent failure false 2 0s"},
		"by category":           {1, handler.Fail(handler.Authentication, plain), "dead permanent failure false 2 0s"},
		"transient by verdict":  {1, refused, "scheduled backoff true 2 1s"},
		"rate limit":            {1, handler.RateLimited(time.Minute, plain), "scheduled backoff true 2 1m0s"},
		"our own fault":         {1, handler.Fail(handler.Internal, plain), "scheduled backoff true 0 1s"},
		"gone":                  {1, handler.Gone(plain), "dead permanent failure false 2 0s"},
		"timeout":               {1, fmt.Errorf("x: %w", context.DeadlineExceeded), "scheduled backoff true 2 1s"},
		"corrupt":               {1, fmt.Errorf("x: %w", payload.ErrCorrupt), "dead undecodable false 0 0s"},
		"cancelled":             {1, gone, "cancelled destination deleted false 0 0s"},
		"shutdown":              {1, ended(handler.ErrShutdown), "ready released false 0 0s"},
		"shutdown, permanent":   {1, handler.Permanent(stopped), "ready released false 0 0s"},
		"lease lost":            {1, fmt.Errorf("x (%w)", handler.ErrLeaseLost), "ready released false 0 0s"},
		"shutdown, at the last": {3, stopped, "ready released false 0 0s"},
	} {
		o := queuestore.Outcome{}
		o.Number = c.attempt
		engine.Decide(&o, policy, c.err)
		if got := fmt.Sprint(o.State, " ", o.Reason, " ", o.Charge, " ", o.Blame, " ", o.Delay); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if (o.Disable != "") != (name == "gone") {
			t.Errorf("%s: disable is %q", name, o.Disable)
		}
	}
	o := queuestore.Outcome{}
	engine.Decide(&o, policy, errors.New("a\x00b\xff"+strings.Repeat("é", 3000)))
	text := o.Failure.Text
	if strings.ContainsRune(text, 0) || !strings.HasPrefix(text, "a\uFFFDb\uFFFD") || len(text) > 2100 {
		t.Errorf("the text is %q", text)
	}
}
