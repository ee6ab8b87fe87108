package retry

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Breaker says when a failing destination is left alone for a while. A zero field is inherited: a
// destination's from the service's, the service's from [DefaultBreaker]. As JSON, durations are
// text such as "5m".
//
// After Failures in a row the breaker opens: items wait, and lose no attempt. After Cooldown it is
// half-open: Probes attempts at a time are let through, over all processes. As many successes in a
// row close it, and one failure opens it again. After DisableFailures in a row, if the first of
// them is at least DisableAfter ago, the destination is disabled. Its items are held until it is
// enabled, by hand or, with Recovery, by an attempt that succeeds. Held items are then released at
// CatchUpPerSecond; items that came in later wait behind them.
//
// Failures on our own side never count.
type Breaker struct {
	Failures         int           // in a row. Default: 5
	Cooldown         time.Duration // Default: 5 min
	Probes           int           // attempts at a time, and successes that close it. Default: 3
	DisableFailures  int           // in a row; negative: never disable. Default: 10
	DisableAfter     time.Duration // since the first of them; negative: at once. Default: 1 h
	Recovery         time.Duration // interval of trial attempts at a disabled destination. Default: none
	CatchUpPerSecond float64       // attempts at held items; negative: no bound. Default: 100
	Off              bool          // it never opens; disabling still works
}

// DefaultBreaker returns the breaker for services that set none.
func DefaultBreaker() Breaker {
	return Breaker{
		Failures:         5,
		Cooldown:         5 * time.Minute,
		Probes:           3,
		DisableFailures:  10,
		DisableAfter:     time.Hour,
		CatchUpPerSecond: 100,
	}
}

// Or returns b with its zero fields taken from base.
func (b Breaker) Or(base Breaker) Breaker {
	return Breaker{
		Failures:         or(b.Failures, base.Failures),
		Cooldown:         or(b.Cooldown, base.Cooldown),
		Probes:           or(b.Probes, base.Probes),
		DisableFailures:  or(b.DisableFailures, base.DisableFailures),
		DisableAfter:     or(b.DisableAfter, base.DisableAfter),
		Recovery:         or(b.Recovery, base.Recovery),
		CatchUpPerSecond: or(b.CatchUpPerSecond, base.CatchUpPerSecond),
		Off:              b.Off || base.Off,
	}
}

// Validate reports every bad field, joined.
func (b Breaker) Validate() error {
	var errs []error
	check := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf("breaker: "+format, args...))
		}
	}
	check(b.Failures < 0, "failures %d is negative; to keep it closed, set Off", b.Failures)
	check(b.Cooldown < 0, "cooldown %s is negative", b.Cooldown)
	check(b.Probes < 0 || b.Probes > 1000, "probes %d is not between 1 and 1000", b.Probes)
	check(b.Recovery != 0 && b.Recovery < time.Second, "recovery %s is less than a second", b.Recovery)
	check(!(b.CatchUpPerSecond <= 1e6), "catch_up_per_second %v is above 1000000", b.CatchUpPerSecond)
	check(
		b.CatchUpPerSecond > 0 && b.CatchUpPerSecond < 1e-4, "catch_up_per_second %v is below 0.0001",
		b.CatchUpPerSecond,
	)
	return errors.Join(errs...)
}

type breakerJSON struct {
	Failures         int     `json:"failures,omitempty"`
	Cooldown         string  `json:"cooldown,omitempty"`
	Probes           int     `json:"probes,omitempty"`
	DisableFailures  int     `json:"disable_failures,omitempty"`
	DisableAfter     string  `json:"disable_after,omitempty"`
	Recovery         string  `json:"recovery,omitempty"`
	CatchUpPerSecond float64 `json:"catch_up_per_second,omitempty"`
	Off              bool    `json:"off,omitempty"`
}

// MarshalJSON writes the fields that are set, durations as text.
func (b Breaker) MarshalJSON() ([]byte, error) {
	return json.Marshal(breakerJSON{
		b.Failures, text(b.Cooldown), b.Probes, b.DisableFailures, text(b.DisableAfter), text(b.Recovery),
		b.CatchUpPerSecond, b.Off,
	})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (b *Breaker) UnmarshalJSON(raw []byte) error {
	var j breakerJSON
	if err := json.Unmarshal(raw, &j); err != nil {
		return err
	}
	cooldown, err1 := parse("cooldown", j.Cooldown)
	after, err2 := parse("disable_after", j.DisableAfter)
	recovery, err3 := parse("recovery", j.Recovery)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	*b = Breaker{j.Failures, cooldown, j.Probes, j.DisableFailures, after, recovery, j.CatchUpPerSecond, j.Off}
	return nil
}

// BreakerState is the state of a destination's breaker. The numbers are stored and never change.
type BreakerState int16

// The states of a breaker.
const (
	Closed   BreakerState = 0 // items are attempted
	Open     BreakerState = 1 // items wait
	HalfOpen BreakerState = 2 // a few items at a time are attempted as probes
)

func (s BreakerState) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	}
	return fmt.Sprintf("unknown(%d)", int16(s))
}

// MarshalText writes what String returns.
func (s BreakerState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
