// Package retry says when a failed attempt is tried again: the policy that a service, a destination
// or a request sets, and the delays that follow from it. It is plain data. The categories of
// package handler decide which failures are tried again. The package imports no other of this
// module; the arithmetic of exponential delays is that of cenkalti/backoff.
package retry

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// None as Policy.Retries means one attempt and no retry.
const None = -1

// Policy says how often and when a failed attempt is tried again. A zero field is inherited: a
// request's from its destination's, a destination's from the service's, the service's from
// [Default]. A negative number means none. As JSON, durations are text such as "1m30s".
type Policy struct {
	Retries       int           // after the first attempt; None for no retry. Default: 5
	First         time.Duration // the delay before the first retry. Default: 1 s
	Max           time.Duration // of a delay without Retry-After. Default: 5 min, or First if that is longer
	Multiplier    float64       // each delay divided by the one before. Default: 2
	Jitter        float64       // each delay varies by up to this part of it; negative: none. Default: 0.1
	MaxRetryAfter time.Duration // the longest Retry-After that counts; negative: none does. Default: 1 h

	// RetryOn and StopOn overrule the handler: they list failures that are tried again, and
	// failures that are not. An entry is a status code of the protocol ("404"), a hundred of them
	// ("5xx") or a category ("rate limit"). The most specific entry counts. Each list is inherited
	// as a whole, unless it is empty but not nil.
	RetryOn []string
	StopOn  []string
}

// Default returns the policy for services that set none: 5 retries, 1 s doubling up to 5 min, 10 %
// jitter, Retry-After honoured up to an hour.
func Default() Policy {
	return Policy{
		Retries:       5,
		First:         time.Second,
		Max:           5 * time.Minute,
		Multiplier:    2,
		Jitter:        0.1,
		MaxRetryAfter: time.Hour,
	}
}

// Hours is a preset for destinations that may be away for a shift: 10 retries, 30 s doubling up to
// 2 h.
func Hours() Policy {
	return Policy{
		Retries:       10,
		First:         30 * time.Second,
		Max:           2 * time.Hour,
		Multiplier:    2,
		Jitter:        0.1,
		MaxRetryAfter: 4 * time.Hour,
	}
}

// Days is a preset for destinations that may be away over a weekend: 12 retries, 1 min trebling up
// to 12 h.
func Days() Policy {
	return Policy{
		Retries:       12,
		First:         time.Minute,
		Max:           12 * time.Hour,
		Multiplier:    3,
		Jitter:        0.1,
		MaxRetryAfter: 24 * time.Hour,
	}
}

// Window returns how long a policy goes on trying: the sum of all delays, without jitter,
// Retry-After and the time that attempts take.
func (p Policy) Window() time.Duration {
	p = p.Or(Default())
	p.Jitter = -1
	var sum time.Duration
	for n := 1; !p.Exhausted(n); n++ {
		sum += p.Delay(n, 0)
	}
	return sum
}

// Or returns p with its zero fields taken from base.
func (p Policy) Or(base Policy) Policy {
	return Policy{
		Retries:       or(p.Retries, base.Retries),
		First:         or(p.First, base.First),
		Max:           or(p.Max, base.Max),
		Multiplier:    or(p.Multiplier, base.Multiplier),
		Jitter:        or(p.Jitter, base.Jitter),
		MaxRetryAfter: or(p.MaxRetryAfter, base.MaxRetryAfter),
		RetryOn:       orList(p.RetryOn, base.RetryOn),
		StopOn:        orList(p.StopOn, base.StopOn),
	}
}

func or[T comparable](v, base T) T {
	var zero T
	if v == zero {
		return base
	}
	return v
}

func orList(v, base []string) []string {
	if v == nil {
		return base
	}
	return v
}

// Validate reports every bad field, joined.
func (p Policy) Validate() error {
	var errs []error
	check := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf("retry: "+format, args...))
		}
	}
	check(p.Retries > 1000, "retries %d is above 1000", p.Retries)
	check(p.First < 0, "first delay %s is negative", p.First)
	check(p.Max < 0, "longest delay %s is negative", p.Max)
	check(p.Max > 0 && p.First > p.Max, "first delay %s is longer than the longest, %s", p.First, p.Max)
	check(
		p.Multiplier != 0 && !(p.Multiplier >= 1 && p.Multiplier <= 100),
		"multiplier %v is not between 1 and 100", p.Multiplier,
	)
	check(!(p.Jitter <= 1), "jitter %v is above 1", p.Jitter)
	return errors.Join(append(errs, p.badRules()...)...)
}

// Exhausted reports whether an item that has had this many attempts gets no more.
func (p Policy) Exhausted(attempts int) bool {
	return attempts > max(0, p.Or(Default()).Retries)
}

// Delay returns how long to wait after the given number of attempts, from 1. retryAfter is the wait
// that the other side asked for, zero if it asked for none: it lengthens the delay, up to
// MaxRetryAfter, and never shortens it.
func (p Policy) Delay(attempts int, retryAfter time.Duration) time.Duration {
	p = p.Or(Default())
	p.Max = max(p.Max, p.First)
	b := backoff.ExponentialBackOff{
		InitialInterval:     p.First,
		RandomizationFactor: max(0, p.Jitter),
		Multiplier:          p.Multiplier,
		MaxInterval:         p.Max,
		Stop:                backoff.Stop,
		Clock:               backoff.SystemClock,
	}
	b.Reset()
	var d time.Duration
	for range min(max(1, attempts), 1001) {
		d = b.NextBackOff()
	}
	return max(min(d, p.Max), min(retryAfter, max(0, p.MaxRetryAfter)))
}

type policyJSON struct {
	Retries       int     `json:"retries,omitempty"`
	First         string  `json:"first,omitempty"`
	Max           string  `json:"max,omitempty"`
	Multiplier    float64 `json:"multiplier,omitempty"`
	Jitter        float64 `json:"jitter,omitempty"`
	MaxRetryAfter string  `json:"max_retry_after,omitempty"`

	RetryOn []string `json:"retry_on,omitzero"`
	StopOn  []string `json:"stop_on,omitzero"`
}

// MarshalJSON writes the fields that are set, durations as text.
func (p Policy) MarshalJSON() ([]byte, error) {
	return json.Marshal(policyJSON{p.Retries, text(p.First), text(p.Max), p.Multiplier, p.Jitter, text(p.MaxRetryAfter),
		p.RetryOn, p.StopOn})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Policy) UnmarshalJSON(b []byte) error {
	var j policyJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	first, err1 := parse("first", j.First)
	longest, err2 := parse("max", j.Max)
	after, err3 := parse("max_retry_after", j.MaxRetryAfter)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	*p = Policy{j.Retries, first, longest, j.Multiplier, j.Jitter, after, j.RetryOn, j.StopOn}
	return nil
}

func text(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func parse(field, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("retry: %s: %q is no duration such as \"1m30s\"", field, s)
	}
	return d, nil
}
