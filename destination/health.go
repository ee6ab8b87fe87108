package destination

import (
	"time"

	"github.com/deliverykit/delivery/retry"
)

// Health says what the last attempts say about a destination.
type Health struct {
	Status              HealthStatus `json:"status"`
	ConsecutiveFailures int          `json:"consecutive_failures"` // zero after each success
	FailingSince        time.Time    `json:"failing_since,omitzero"`
	LastFailure         time.Time    `json:"last_failure,omitzero"`

	Breaker      retry.BreakerState `json:"breaker"`
	BreakerSince time.Time          `json:"breaker_since,omitzero"` // of its last change
	ProbeAt      time.Time          `json:"probe_at,omitzero"`      // when it is next half-open; zero if no time is set
}

// HealthStatus is Health in one word.
type HealthStatus string

// The statuses.
const (
	Healthy   HealthStatus = "healthy"
	Degraded  HealthStatus = "degraded"  // 3 failures in a row
	Unhealthy HealthStatus = "unhealthy" // 5 failures in a row, or its breaker is not closed
)

const (
	degradedAt  = 3
	unhealthyAt = 5
)

// StatusOf derives Health.Status.
func StatusOf(failures int, breaker retry.BreakerState) HealthStatus {
	switch {
	case failures >= unhealthyAt || breaker != retry.Closed:
		return Unhealthy
	case failures >= degradedAt:
		return Degraded
	}
	return Healthy
}

// HealthReport says how a destination did over a window. Attempts are counted by the minute. Those
// of the last second may be missing.
type HealthReport struct {
	Health
	Since       time.Time `json:"since"`               // the beginning of the window
	Delivered   int64     `json:"delivered"`           // items
	Dead        int64     `json:"dead"`                // items
	Attempts    int64     `json:"attempts"`            // those that were made
	Failed      int64     `json:"failed"`              // attempts
	SuccessRate float64   `json:"success_rate"`        // of attempts, from 0 to 1; 1 if there were none
	Pending     bool      `json:"pending"`             // items wait for it now
	Total       Usage     `json:"total"`               // since it was created, for any window
	LastUsed    time.Time `json:"last_used,omitzero"`  // the minute of the last attempt; zero if there was none
	Latency     Latency   `json:"latency,omitzero"`    // of attempts
	Check       *Check    `json:"check,omitempty"`     // the last scheduled connection test, if there was one
	NextCheck   time.Time `json:"next_check,omitzero"` // when it is due next
}

// Usage counts what a destination was used for.
type Usage struct {
	Delivered int64 `json:"delivered"` // items
	Dead      int64 `json:"dead"`      // items
	Attempts  int64 `json:"attempts"`  // those that were made
	Failed    int64 `json:"failed"`    // attempts
}

// Latency is how long attempts took. Percentiles are upper bounds of the buckets that count
// attempts: 5, 10, 25, 50, 100, 250, 500 ms, 1, 2.5, 5, 10, 30, 60 s. Longer attempts count as 60
// s.
type Latency struct {
	Mean Duration `json:"mean"`
	P50  Duration `json:"p50"`
	P95  Duration `json:"p95"`
	P99  Duration `json:"p99"`
}

// Check is a scheduled connection test of an idle or unhealthy destination.
type Check struct {
	At     time.Time   `json:"at"`
	Report *TestReport `json:"report"`
}
