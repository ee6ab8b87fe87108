// Package testkit has what tests of the whole service share: databases of both kinds, a service on
// them, handlers that do what a test says, and a clock that a test moves. It is for the tests of
// this module; hosts have package deliverytest.
package testkit

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"
)

// WaitFor returns once the condition holds, and fails the test when ctx ends first.
func WaitFor(ctx context.Context, t *testing.T, condition func() bool) {
	t.Helper()
	for tick := time.NewTicker(5 * time.Millisecond); !condition(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			t.Fatal("the time is over")
		}
	}
}

// JSON returns v as JSON.
func JSON(t *testing.T, v any) string {
	t.Helper()
	return string(Try(json.Marshal(v)).Must(t))
}

// Soak has tests run for long.
var Soak = os.Getenv("DELIVERY_SOAK") == "1"

// Tried is what a call returned.
type Tried[T any] struct {
	value T
	err   error
}

// Try keeps what a call returned for Must: testkit.Try(org.Status(ctx, id)).Must(t).
func Try[T any](value T, err error) Tried[T] { return Tried[T]{value, err} }

// Must returns the value, and ends the test if there was an error.
func (r Tried[T]) Must(t *testing.T) T {
	t.Helper()
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.value
}

// Within returns the test's context, which ends after d.
func Within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
