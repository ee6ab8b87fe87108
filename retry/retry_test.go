package retry_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/retry"
)

var none = retry.Policy{Jitter: -1}

func TestDefaultDelays(t *testing.T) {
	t.Parallel()
	for i, want := range []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		if got := none.Delay(i+1, 0); got.Seconds() != want {
			t.Errorf("after attempt %d: %s, want %v s", i+1, got, want)
		}
	}
	if none.Exhausted(5) || !none.Exhausted(6) {
		t.Error("5 retries are 6 attempts")
	}
	never := retry.Policy{Retries: retry.None}
	if never.Exhausted(0) || !never.Exhausted(1) {
		t.Error("no retry is one attempt")
	}
}

func policies() *rapid.Generator[retry.Policy] {
	return rapid.Custom(func(t *rapid.T) retry.Policy {
		first := rapid.Int64Range(0, int64(time.Hour)).Draw(t, "first")
		return retry.Policy{
			Retries:       rapid.IntRange(-1, 1000).Draw(t, "retries"),
			First:         time.Duration(first),
			Max:           time.Duration(rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(first, int64(1000*time.Hour))).Draw(t, "max")),
			Multiplier:    rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(1, 100)).Draw(t, "multiplier"),
			Jitter:        rapid.Float64Range(-1, 1).Draw(t, "jitter"),
			MaxRetryAfter: time.Duration(rapid.Int64Range(-1, int64(100*time.Hour)).Draw(t, "max retry after")),
			RetryOn:       rapid.SampledFrom([][]string{nil, {}, {"404"}, {"5xx", "conflict"}}).Draw(t, "retry on"),
			StopOn:        rapid.SampledFrom([][]string{nil, {}, {"501"}, {"4xx", "timeout"}}).Draw(t, "stop on"),
		}
	})
}

// However a policy is made: no delay is negative or beyond the longest, unless the other side asked
// for it.
func TestDelayBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := policies().Draw(t, "policy")
		if err := p.Validate(); err != nil {
			t.Fatalf("not valid: %v", err)
		}
		attempts := rapid.IntRange(-1, 3000).Draw(t, "attempts")
		after := time.Duration(rapid.Int64().Draw(t, "retry after"))
		full := p.Or(retry.Default())
		full.Max = max(full.Max, full.First)
		d := p.Delay(attempts, after)
		honoured := min(after, max(0, full.MaxRetryAfter))
		if d < 0 || d < honoured || d > max(full.Max, honoured) {
			t.Fatalf("%s for %+v", d, full)
		}
		if p.Jitter < 0 && after <= 0 {
			want := float64(full.First)
			for range min(max(attempts, 1), 1001) - 1 {
				want = min(want*full.Multiplier, float64(full.Max))
			}
			// Steps are cut to whole nanoseconds, which matters only where they are tiny.
			if diff := float64(d) - want; full.First >= time.Microsecond && (diff > 1e-3*want || diff < -1e-3*want) {
				t.Fatalf("%s, want %s", d, time.Duration(want))
			}
		}
	})
}

// A first delay of its own is not cut by the longest that it inherits.
func TestFirstRaisesAnInheritedMax(t *testing.T) {
	t.Parallel()
	p := retry.Policy{First: time.Hour, Jitter: -1}.Or(retry.Policy{Max: time.Minute})
	for attempts := range 3 {
		if d := p.Delay(attempts, 0); d != time.Hour {
			t.Errorf("%s after %d attempts", d, attempts)
		}
	}
}

func TestJitterSpreads(t *testing.T) {
	t.Parallel()
	p := retry.Policy{First: time.Minute, Jitter: 0.5}
	seen := map[time.Duration]bool{}
	for range 200 {
		d := p.Delay(1, 0)
		if d < 30*time.Second || d > 90*time.Second {
			t.Fatalf("%s is not within half of a minute", d)
		}
		seen[d] = true
	}
	if len(seen) < 100 {
		t.Errorf("only %d different delays of 200", len(seen))
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		most, asked, want time.Duration
	}{
		{0, time.Minute, time.Minute},
		{0, time.Millisecond, time.Second}, // never shortens
		{0, 2 * time.Hour, time.Hour},      // by default up to an hour
		{3 * time.Hour, 2 * time.Hour, 2 * time.Hour},
		{-1, time.Minute, time.Second}, // ignored
		{0, -time.Minute, time.Second},
	} {
		p := retry.Policy{Jitter: -1, MaxRetryAfter: c.most}
		if got := p.Delay(1, c.asked); got != c.want {
			t.Errorf("%s with at most %s: %s, want %s", c.asked, c.most, got, c.want)
		}
	}
}

// What is set stays, what is not is inherited, and inheriting twice changes nothing.
func TestOr(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := policies().Draw(t, "a"), policies().Draw(t, "b"), policies().Draw(t, "c")
		if got, want := a.Or(b).Or(c), a.Or(b.Or(c)); !cmp.Equal(got, want) {
			t.Fatalf("%+v, %+v", got, want)
		}
		if !cmp.Equal(a.Or(a), a) || !cmp.Equal(a.Or(retry.Policy{}), a) || !cmp.Equal((retry.Policy{}).Or(a), a) {
			t.Fatal("the zero policy is not neutral")
		}
		if a.Retries != 0 && a.Or(b).Retries != a.Retries || a.Retries == 0 && a.Or(b).Retries != b.Retries {
			t.Fatal("Retries")
		}
	})
}

func TestValidateReportsEveryField(t *testing.T) {
	t.Parallel()
	err := retry.Policy{Retries: 1001, First: -1, Max: -1, Multiplier: 0.5, Jitter: 1.5}.Validate()
	if err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("%v", err)
	}
	for name, p := range map[string]retry.Policy{
		"first above max": {First: 2, Max: 1}, "multiplier": {Multiplier: 101}, "negative multiplier": {Multiplier: -1},
		"nan multiplier": {Multiplier: nan()}, "nan jitter": {Jitter: nan()},
	} {
		if p.Validate() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := retry.Default().Validate(); err != nil {
		t.Error(err)
	}
}

func nan() float64 {
	var zero float64
	return zero / zero
}

func TestJSON(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := policies().Draw(t, "policy")
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back retry.Policy
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, back); diff != "" {
			t.Fatal(diff)
		}
	})
	var p retry.Policy
	err := json.Unmarshal([]byte(`{"first":"soon","max":"5","max_retry_after":"1h"}`), &p)
	if err == nil || !strings.Contains(err.Error(), "first") || !strings.Contains(err.Error(), "max:") {
		t.Errorf("not every field is named: %v", err)
	}
	if err := json.Unmarshal([]byte(`{"retries":"five"}`), &p); err == nil {
		t.Error("a wrong type is accepted")
	}
}

func Example() {
	policy := retry.Policy{Retries: 8, First: 10 * time.Second, Max: time.Hour, Multiplier: 4, Jitter: -1}
	for attempts := 1; !policy.Exhausted(attempts); attempts++ {
		fmt.Println(attempts, policy.Delay(attempts, 0))
	}
	fmt.Println(policy.Delay(1, 90*time.Second), "when the other side asked for 90 s")

	inherited := retry.Policy{Retries: retry.None}.Or(policy)
	fmt.Println(inherited.Retries, inherited.Max)
	// Output:
	// 1 10s
	// 2 40s
	// 3 2m40s
	// 4 10m40s
	// 5 42m40s
	// 6 1h0m0s
	// 7 1h0m0s
	// 8 1h0m0s
	// 1m30s when the other side asked for 90 s
	// -1 1h0m0s
}

func TestRules(t *testing.T) {
	t.Parallel()
	p := retry.Policy{RetryOn: []string{"404", "4xx", "conflict"}, StopOn: []string{"400", "5xx", "timeout"}}
	for _, c := range []struct {
		category            string
		status              int
		again, exact, found bool
	}{
		{"configuration", 404, true, true, true},
		{"validation", 400, false, true, true},
		{"validation", 422, true, false, true},
		{"timeout", 408, true, false, true}, // 4xx is closer than the category
		{"remote", 503, false, false, true},
		{"conflict", 0, true, false, true},
		{"timeout", 0, false, false, true},
		{"network", 0, false, false, false},
		{"remote", 302, false, false, false},
	} {
		again, exact, found := p.Rule(c.category, c.status)
		if again != c.again || exact != c.exact || found != c.found {
			t.Errorf("%s %d: %v %v %v", c.category, c.status, again, exact, found)
		}
	}
	err := retry.Policy{RetryOn: []string{"timeot", "404"}, StopOn: []string{"404", "6", "600x"}}.Validate()
	if err == nil || strings.Count(err.Error(), "\n") != 3 || !strings.Contains(err.Error(), "timeot") || !strings.Contains(err.Error(), "both") {
		t.Errorf("bad rules: %v", err)
	}
}

func ExamplePolicy_Window() {
	fmt.Println("default:", retry.Default().Window())
	fmt.Println("hours:  ", retry.Hours().Window())
	fmt.Println("days:   ", retry.Days().Window())
	// Output:
	// default: 31s
	// hours:   6h7m30s
	// days:    78h4m0s
}
