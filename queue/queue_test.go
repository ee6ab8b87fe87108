package queue_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/queue"
)

var states = []queue.State{queue.Ready, queue.Processing, queue.Scheduled, queue.Delivered, queue.Dead, queue.Cancelled}

// The summary says what its comment says, whatever the order of the items.
func TestSummarize(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOfN(rapid.SampledFrom(states), 1, 8).Draw(t, "items")
		attempted := rapid.Bool().Draw(t, "attempted")
		count := map[queue.State]int{}
		ended := 0
		for _, s := range items {
			count[s]++
			if s.Ended() {
				ended++
			}
		}
		got := queue.Summarize(items, attempted)
		if got.Ended() != (ended == len(items)) {
			t.Fatalf("%s, and %d of %d have ended", got, ended, len(items))
		}
		for summary, holds := range map[queue.Summary]bool{
			queue.Queued:          ended == 0 && count[queue.Processing] == 0 && !attempted,
			queue.InProgress:      ended < len(items) && (ended > 0 || count[queue.Processing] > 0 || attempted),
			queue.Completed:       count[queue.Delivered] == len(items),
			queue.PartiallyFailed: ended == len(items) && count[queue.Delivered] > 0 && count[queue.Delivered] < len(items),
			queue.Failed:          ended == len(items) && count[queue.Delivered] == 0 && count[queue.Dead] > 0,
			queue.AllCancelled:    count[queue.Cancelled] == len(items),
		} {
			if holds != (got == summary) {
				t.Fatalf("%v is %q, and %q: %t", items, got, summary, holds)
			}
		}
		shuffled := rapid.Permutation(items).Draw(t, "shuffled")
		if again := queue.Summarize(shuffled, attempted); again != got {
			t.Fatalf("%v is %s, %v is %s", items, got, shuffled, again)
		}
	})
}

// Stored numbers never change.
func TestStoredNumbers(t *testing.T) {
	t.Parallel()
	for i, want := range []string{"ready", "processing", "scheduled", "delivered", "dead", "cancelled", "unknown(6)"} {
		if got := queue.State(i).String(); got != want {
			t.Errorf("state %d is %q, want %q", i, got, want)
		}
	}
	for i, want := range []string{"none", "backoff", "not before", "destination disabled", "retries exhausted", "permanent failure",
		"deadline passed", "poison", "undecodable", "requested", "destination deleted", "lease lost", "released", "paused", "breaker open",
		"breaker half-open", "concurrency limit", "rate limit", "strict order", "organization limit", "catching up", "no handler",
		"in turn", "unknown(23)"} {
		if got := queue.Reason(i).String(); got != want {
			t.Errorf("reason %d is %q, want %q", i, got, want)
		}
	}
	if queue.LeaseLost != 11 || queue.Dead != 4 || queue.State(-1).String() != "unknown(-1)" {
		t.Error("a number has changed")
	}
	b, err := json.Marshal(map[string]any{"state": queue.Dead, "reason": queue.Exhausted})
	if err != nil || !strings.Contains(string(b), `"reason":"retries exhausted","state":"dead"`) {
		t.Errorf("%s, %v", b, err)
	}
}

func ExampleSummarize() {
	fmt.Println(queue.Summarize([]queue.State{queue.Ready, queue.Scheduled}, false))
	fmt.Println(queue.Summarize([]queue.State{queue.Delivered, queue.Scheduled}, true))
	fmt.Println(queue.Summarize([]queue.State{queue.Delivered, queue.Dead}, true))
	fmt.Println(queue.Summarize([]queue.State{queue.Delivered, queue.Delivered}, true))
	// Output:
	// queued
	// processing
	// partially failed
	// completed
}
