package retry_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/retry"
)

func TestBreakerInherits(t *testing.T) {
	t.Parallel()
	own := retry.Breaker{Failures: 7, DisableFailures: -1, CatchUpPerSecond: 2.5}
	got := own.Or(retry.Breaker{Cooldown: time.Second, Off: true}).Or(retry.DefaultBreaker())
	want := retry.Breaker{
		Failures: 7, Cooldown: time.Second, Probes: 3, DisableFailures: -1, DisableAfter: time.Hour, CatchUpPerSecond: 2.5, Off: true,
	}
	if got != want {
		t.Errorf("%+v", got)
	}
}

func TestBreakerJSON(t *testing.T) {
	t.Parallel()
	b := retry.Breaker{
		Failures: 1, Cooldown: 90 * time.Second, Probes: 2, DisableFailures: 3, DisableAfter: -1, Recovery: time.Hour,
		CatchUpPerSecond: 0.5, Off: true,
	}
	raw, err := json.Marshal(b)
	if err != nil || !strings.Contains(string(raw), `"cooldown":"1m30s"`) {
		t.Fatalf("%s, %v", raw, err)
	}
	var back retry.Breaker
	if err := json.Unmarshal(raw, &back); err != nil || back != b {
		t.Errorf("%+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"cooldown":"soon"}`), &back); err == nil || !strings.Contains(err.Error(), "cooldown") {
		t.Errorf("a cooldown of soon: %v", err)
	}
}

func TestBreakerValidate(t *testing.T) {
	t.Parallel()
	bad := retry.Breaker{Failures: -1, Cooldown: -1, Probes: -1, Recovery: time.Millisecond, CatchUpPerSecond: 1e7}
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{"failures", "cooldown", "probes", "recovery", "catch_up_per_second"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%q does not name %s", err, field)
		}
	}
	for _, good := range []retry.Breaker{{}, retry.DefaultBreaker(), {DisableFailures: -1, DisableAfter: -1, CatchUpPerSecond: -1}} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}
