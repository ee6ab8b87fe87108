package systemtest_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/retry"
)

// Whatever is given, it is refused as a fault of that input, or stored: no call panics, and none
// fails in the database.
func TestHostileDestinations(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("free", testkit.ParamsHandler{}), delivery.WithHandler("vault", &testkit.Vault{}))
		ds := svc.Org("acme").Destinations()
		cyclic := map[string]any{"name": "n"}
		cyclic["more"] = cyclic
		list := []any{nil}
		list[0] = list
		texts := map[string]string{
			"huge": strings.Repeat("x", 1<<20), "NUL": "a\x00b", "no UTF-8": "a\xff\xfeb", "surrogate": "a\xed\xa0\x80b", "line end": "a\r\nb", "escape": "\x1b[2J",
		}
		ok := testkit.Script{Name: "n"}
		specs := map[string]destination.Spec{
			"no config":          {},
			"typed nil":          {Config: (*testkit.Script)(nil)},
			"no type":            {Config: destination.As("", `{}`)},
			"type with NUL":      {Config: destination.As("fa\x00ke", `{}`)},
			"null":               {Config: destination.As("fake", `null`)},
			"list":               {Config: destination.As("fake", `[]`)},
			"deep":               {Config: destination.As("fake", strings.Repeat(`{"a":`, 100_000)+"1"+strings.Repeat("}", 100_000))},
			"deep, taken as is":  {Config: destination.As("free", strings.Repeat(`{"a":`, 9000)+"1"+strings.Repeat("}", 9000))},
			"large":              {Config: destination.As("fake", `{"name":"`+strings.Repeat("x", 300<<10)+`"}`)},
			"NUL in a value":     {Config: destination.As("fake", `{"name":"a\u0000b"}`)},
			"NUL in a key":       {Config: destination.As("free", `{"a\u0000b":1}`)},
			"surrogate":          {Config: destination.As("free", `{"a":"\ud800"}`)},
			"no UTF-8":           {Config: destination.As("free", "{\"a\":\"\xff\"}")},
			"large number":       {Config: destination.As("free", `{"a":1e999999}`)},
			"twice the same key": {Config: destination.As("fake", `{"name":"n","name":"m"}`)},
			"cyclic":             {Config: destination.As("fake", cyclic)},
			"cyclic list":        {Config: destination.As("free", list)},
			"no JSON":            {Config: destination.As("fake", math.NaN())},
			"tags":               {Config: ok, Tags: make([]string, 10_000)},
			"topics":             {Config: ok, Default: true, DefaultTopics: make([]string, 10_000)},
			"subscription":       {Config: ok, Subscription: destination.Subscription{Tags: []string{"\x00"}, Topics: []string{strings.Repeat("*", 1000)}, Metadata: map[string]string{"": strings.Repeat("x", 1<<20)}}},
			"fallback":           {Config: ok, Default: true, Fallback: math.MaxInt},
			"limits":             {Config: ok, Limits: destination.Limits{Timeout: math.MaxInt64, MaxBytes: math.MinInt64, Concurrency: math.MaxInt, PerSecond: math.Inf(1), Burst: math.MaxInt}},
			"no limits":          {Config: ok, Limits: destination.Limits{Timeout: math.MinInt64, Concurrency: math.MinInt, PerSecond: math.NaN(), Burst: math.MinInt}},
			"most allowed":       {Config: ok, Limits: destination.Limits{MaxBytes: math.MaxInt64, Concurrency: math.MaxInt}},
			"retry":              {Config: ok, Retry: retry.Policy{Retries: math.MaxInt, First: math.MaxInt64, Max: math.MinInt64, Multiplier: math.Inf(1), Jitter: math.NaN(), RetryOn: []string{"\x00"}}},
			"breaker":            {Config: ok, Breaker: retry.Breaker{Failures: math.MinInt, Cooldown: math.MaxInt64, Probes: math.MaxInt, DisableFailures: math.MinInt, DisableAfter: math.MinInt64, Recovery: math.MaxInt64, CatchUpPerSecond: math.NaN()}},
			"icon":               {Config: ok, Icon: "https://\x00"},
		}
		for name, text := range texts {
			specs["label: "+name] = destination.Spec{Label: text, Config: ok}
			specs["description: "+name] = destination.Spec{Description: text, Config: ok}
			specs["instructions: "+name] = destination.Spec{Instructions: text, Config: ok}
			specs["icon: "+name] = destination.Spec{Icon: "https://example.com/" + text, Config: ok}
			specs["tag: "+name] = destination.Spec{Tags: []string{text}, Config: ok}
			specs["metadata: "+name] = destination.Spec{Subscription: destination.Subscription{Metadata: map[string]string{text: text}}, Config: ok}
			specs["config: "+name] = destination.Spec{Config: testkit.Script{Name: text, Token: destination.NewSecret(text)}}
			specs["free config: "+name] = destination.Spec{Config: destination.As("free", map[string]any{"a": text, text: 1})}
			specs["type: "+name] = destination.Spec{Config: destination.As(text, ok)}
		}
		fair := func(name string, err error) {
			t.Helper()
			var invalid *destination.ValidationError
			if err != nil && !errors.As(err, &invalid) {
				t.Errorf("%s: %.300v", name, err)
			}
			if err != nil && len(err.Error()) > 100_000 {
				t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
			}
		}
		d := testkit.CreateVault(t, svc.Org("acme"), destination.Spec{})
		free := testkit.Create(t, svc.Org("acme"), destination.Spec{Config: destination.As("free", `{}`)})
		for name, spec := range specs {
			if spec.Label == "" {
				spec.Label = "x"
			}
			_, err := ds.Validate(t.Context(), spec)
			fair(name+", checked", err)
			created, createErr := ds.Create(t.Context(), spec)
			fair(name, createErr)
			if (err == nil) != (createErr == nil) {
				t.Errorf("%s: Validate says %.300v, Create %.300v", name, err, createErr)
			}
			if createErr == nil {
				_, err = ds.Get(t.Context(), created.ID)
				fair(name+", read", err)
			}
			_, err = ds.TestSpec(t.Context(), spec)
			if !errors.Is(err, errors.ErrUnsupported) {
				fair(name+", tested", err)
			}
			for _, id := range []string{d.ID, free.ID} {
				_, err = ds.Update(t.Context(), id, destination.Patch{Label: &spec.Label, Description: &spec.Description, Tags: &spec.Tags,
					Subscription: &spec.Subscription, Limits: &spec.Limits, Retry: &spec.Retry, Breaker: &spec.Breaker, Config: spec.Config})
				fair(name+", updated", err)
			}
		}
		for name, merge := range map[string]map[string]any{
			"cyclic": cyclic, "list": {"a": list}, "function": {"a": func() {}}, "number": {"a": math.Inf(-1)}, "large": {"a": strings.Repeat("x", 1<<20)},
			"key": {"a\x00b": 1}, "no UTF-8": {"a\xff": "\xff"}, "deep": nested(20_000), "placeholder": {"a": destination.Redacted},
			"placeholder in a list": {"a": []any{destination.Redacted}}, "placeholder as a key": {destination.Redacted: 1}, "everything": {"name": nil, "token": nil},
		} {
			for _, id := range []string{d.ID, free.ID} {
				_, err := ds.Update(t.Context(), id, destination.Patch{Merge: merge})
				fair("merge: "+name, err)
			}
		}
		for _, id := range []string{"", "\x00", "\xff", strings.Repeat("x", 1<<20), "00000000-0000-0000-0000-000000000000", "{" + d.ID + "}", "urn:uuid:" + d.ID, d.ID + " ", "' or 1=1 --"} {
			if _, err := ds.Get(t.Context(), id); !errors.Is(err, delivery.ErrNotFound) || len(err.Error()) > 1000 {
				t.Errorf("%.50q: %.100v", id, err)
			}
			_, err := ds.List(t.Context(), delivery.DestinationFilter{Type: id, Label: id, Tag: id, Health: destination.HealthStatus(id)}, "")
			fair(fmt.Sprintf("filter %.50q", id), err)
			_, err = ds.Defaults(t.Context(), id)
			fair("defaults", err)
		}
		for _, d1 := range []destination.Duration{math.MaxInt64, math.MinInt64} {
			_, err := ds.RotateSecret(t.Context(), d.ID, destination.Rotation{Overlap: d1, Secret: destination.NewSecret("x\x00\xff")})
			fair("rotation", err)
		}
		for _, w := range []time.Duration{math.MaxInt64, math.MinInt64, 1} {
			_, err := ds.Health(t.Context(), d.ID, w)
			fair("health", err)
		}
		for name, text := range texts {
			_, err := ds.Disable(t.Context(), d.ID, text)
			if fair("disable: "+name, err); err == nil {
				t.Errorf("disabled because of %s", name)
			}
			_, err = ds.Duplicate(t.Context(), d.ID, text)
			fair("duplicate", err)
			_, err = ds.Sample(t.Context(), d.ID, text)
			fair("sample", err)
		}
		fair("deletion", ds.Delete(t.Context(), d.ID, destination.Pending(math.MinInt)))
		if err := ds.Delete(t.Context(), d.ID, destination.CancelPending); err != nil {
			t.Error(err)
		}
	})
}

func nested(depth int) map[string]any {
	inner := map[string]any{}
	for range depth {
		inner = map[string]any{"a": inner}
	}
	return inner
}
