package queuestore_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/retry"
)

// What is true of a breaker, in whatever order attempts end.
func TestObserve(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := retry.Breaker{
			Failures: rapid.IntRange(1, 6).Draw(t, "failures"), Probes: rapid.IntRange(1, 3).Draw(t, "probes"),
			Cooldown: time.Minute, DisableFailures: rapid.IntRange(-1, 10).Draw(t, "disable"), DisableAfter: time.Hour,
			Recovery: rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "recovery"), Off: rapid.Bool().Draw(t, "off"),
		}
		now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		var h queuestore.HealthRow
		disabled := false
		row, wins := 0, 0 // failures in a row; successes of probes in a row
		var since time.Time
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(rapid.SampledFrom([]time.Duration{0, time.Second, time.Minute, 20 * time.Minute}).Draw(t, "passes"))
			fault, before, probing := rapid.Bool().Draw(t, "fault"), h, h.Probing(now)
			verdict := h.Observe(fault, b, disabled, now)
			if fault {
				if row++; row == 1 {
					since = now
				}
				wins = 0
			} else {
				row = 0
				if probing {
					wins++
				}
			}
			if h.Failures != row || row > 0 && !h.FailingSince.Equal(since) || row == 0 && !h.FailingSince.IsZero() {
				t.Fatalf("%d failures since %s, counted %d since %s", row, since, h.Failures, h.FailingSince)
			}
			giveUp := fault && !disabled && b.DisableFailures > 0 && row >= b.DisableFailures && now.Sub(since) >= b.DisableAfter
			recovered := !fault && probing && wins >= b.Probes
			opened := fault && !giveUp && !disabled && !b.Off && (probing || before.Breaker == retry.Closed && row >= b.Failures)
			want := queuestore.NoChange
			switch {
			case giveUp:
				want, disabled = queuestore.GivenUp, true
			case recovered:
				want, disabled, wins = queuestore.Recovered, false, 0
			case opened:
				want = queuestore.Opened
			}
			if verdict != want {
				t.Fatalf("verdict %d, want %d: %+v, before %+v", verdict, want, h, before)
			}
			if recovered && h.Breaker != retry.Closed ||
				opened && (h.Breaker != retry.Open || !h.ProbeAt.Equal(now.Add(b.Cooldown))) {
				t.Fatalf("%+v after verdict %d", h, verdict)
			}
			if giveUp && h.Breaker != map[bool]retry.BreakerState{true: retry.Open, false: retry.Closed}[b.Recovery > 0] {
				t.Fatalf("disabled with %+v", h)
			}
			if !fault && !probing && h.Breaker != before.Breaker {
				t.Fatalf("a success that was no probe changed the breaker: %+v, before %+v", h, before)
			}
			if probing && fault && !b.Off && h.Probing(now) {
				t.Fatalf("still half-open after a probe failed: %+v", h)
			}
		}
	})
}
