package delivery_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func labels(all []*destination.Destination) (found []string) {
	for _, d := range all {
		found = append(found, d.Label)
	}
	return found
}

func TestListFilters(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{}, delivery.WithHandler("vault", &vault{}))
		acme := svc.Org("acme")
		ds := acme.Destinations()
		create(t, acme, destination.Spec{Label: "Alpha 100%", Default: true, Tags: []string{"eu"}})
		create(t, acme, destination.Spec{Label: "beta_1", Disabled: true})
		broken := createVault(t, acme, destination.Spec{Label: "Gamma"})
		if err := ds.OpenBreaker(t.Context(), broken.ID); err != nil {
			t.Fatal(err)
		}
		create(t, svc.Org("other"), destination.Spec{Label: "Alpha of another"})
		for name, test := range map[string]struct {
			filter delivery.DestinationFilter
			want   []string
		}{
			"all":             {delivery.DestinationFilter{}, []string{"Alpha 100%", "beta_1", "Gamma"}},
			"type":            {delivery.DestinationFilter{Type: "vault"}, []string{"Gamma"}},
			"enabled":         {delivery.DestinationFilter{Enabled: destination.Set(true)}, []string{"Alpha 100%", "Gamma"}},
			"disabled":        {delivery.DestinationFilter{Enabled: destination.Set(false)}, []string{"beta_1"}},
			"default":         {delivery.DestinationFilter{Default: destination.Set(true)}, []string{"Alpha 100%"}},
			"healthy":         {delivery.DestinationFilter{Health: destination.Healthy}, []string{"Alpha 100%", "beta_1"}},
			"unhealthy":       {delivery.DestinationFilter{Health: destination.Unhealthy}, []string{"Gamma"}},
			"label":           {delivery.DestinationFilter{Label: "aLPha"}, []string{"Alpha 100%"}},
			"label, percent":  {delivery.DestinationFilter{Label: "0%"}, []string{"Alpha 100%"}},
			"label, any":      {delivery.DestinationFilter{Label: "%"}, []string{"Alpha 100%"}},
			"label, one":      {delivery.DestinationFilter{Label: "a_1"}, []string{"beta_1"}},
			"label, wildcard": {delivery.DestinationFilter{Label: "_lpha"}, nil},
			"tag":             {delivery.DestinationFilter{Tag: "eu"}, []string{"Alpha 100%"}},
			"both":            {delivery.DestinationFilter{Tag: "eu", Type: "vault"}, nil},
		} {
			page, err := ds.List(t.Context(), test.filter, "")
			if err != nil || !slices.Equal(labels(page.Items), test.want) || page.Next != "" {
				t.Errorf("%s: got %v, %q, %v; want %v", name, labels(page.Items), page.Next, err, test.want)
			}
		}
		var invalid *destination.ValidationError
		_, err := ds.List(t.Context(), delivery.DestinationFilter{Type: "\x00", Health: "sick"}, "no cursor")
		if !errors.As(err, &invalid) || len(invalid.Fields) != 3 || invalid.Fields[0].Path != "filter.type" {
			t.Errorf("a bad filter is answered with %v", err)
		}
		for i := range 103 {
			create(t, svc.Org("many"), destination.Spec{Label: fmt.Sprint(i)})
		}
		var all []string
		for after, pages := "", 0; ; pages++ {
			page := must[delivery.Page[*destination.Destination]](t)(svc.Org("many").Destinations().List(t.Context(), delivery.DestinationFilter{}, after))
			all = append(all, labels(page.Items)...)
			if after = page.Next; after == "" {
				if pages != 1 {
					t.Errorf("%d full pages of 103", pages)
				}
				break
			}
		}
		if len(all) != 103 || all[0] != "0" || all[102] != "102" {
			t.Errorf("paged through %v", all)
		}
	})
}

func TestDuplicateHasTheCredentials(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc, d := openVault(t, db, &vault{})
		ds := svc.Org("acme").Destinations()
		c := must[*destination.Destination](t)(ds.Duplicate(t.Context(), d.ID, ""))
		if c.ID == d.ID || c.Label != d.Label+" (copy)" || !c.Disabled || c.Default || c.Type != "vault" || !bytes.Equal(c.Config, d.Config) {
			t.Errorf("of %+v the copy is %+v", d, c)
		}
		secrets := must[[]destination.Secret](t)(ds.SigningSecrets(t.Context(), c.ID))
		if len(secrets) != 1 || secrets[0].Reveal() != "first" {
			t.Errorf("the copy signs with %d secrets", len(secrets))
		}
		long := create(t, svc.Org("acme"), destination.Spec{Label: strings.Repeat("é", 100)})
		if c := must[*destination.Destination](t)(ds.Duplicate(t.Context(), long.ID, "")); c.Label != strings.Repeat("é", 96)+" (copy)" {
			t.Errorf("the copy of a long label has the label %q", c.Label)
		}
	})
}

func TestDeleteWithPendingItems(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		ds := acme.Destinations()
		d := create(t, acme, destination.Spec{})
		later := delivery.Request{Destinations: []string{d.ID}, NotBefore: c.now().Add(time.Hour), Payload: payload.JSON(1)}
		id := send(t, acme, later)
		if err := ds.Delete(t.Context(), d.ID, destination.RefusePending); !errors.Is(err, delivery.ErrInUse) {
			t.Errorf("refused with %v", err)
		}
		if err := ds.Delete(t.Context(), d.ID, destination.DrainPending); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.Deliver(t.Context(), later); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("what is being deleted takes something new: %v", err)
		}
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		if got := must[*destination.Destination](t)(ds.Get(t.Context(), d.ID)); got.DrainingAt.IsZero() {
			t.Errorf("it is %+v", got)
		}
		c.advance(2 * time.Hour)
		process(t, svc)
		if s := status(t, acme, id); s.State != queue.Completed {
			t.Errorf("it is %s", show(s))
		}
		if chores := must[delivery.Chores](t)(svc.Maintain(t.Context())); chores.DestinationsDrained != 1 {
			t.Errorf("got %+v", chores)
		}
		if _, err := ds.Get(t.Context(), d.ID); !errors.Is(err, delivery.ErrNotFound) {
			t.Error(err)
		}
		if s := status(t, acme, id); s.State != queue.Completed || s.Items[0].Label != d.Label {
			t.Errorf("its history is %s", show(s))
		}
		other := create(t, acme, destination.Spec{})
		id = send(t, acme, delivery.Request{Destinations: []string{other.ID}, NotBefore: c.now().Add(time.Hour)})
		if err := ds.Delete(t.Context(), other.ID, destination.CancelPending); err != nil {
			t.Fatal(err)
		}
		if s := status(t, acme, id); s.Items[0].State != queue.Cancelled || s.Items[0].Reason != queue.DestinationGone {
			t.Errorf("it is %s", show(s))
		}
	})
}

// Where no primary default is usable, the lowest fallback that is steps in, and receipts and statuses say so.
func TestFallbacks(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{})
		acme := svc.Org("acme")
		ds := acme.Destinations()
		ids := map[string]string{}
		for label, place := range map[string]int{"primary": 0, "also primary": 0, "first": 1, "second": 2} {
			ids[label] = create(t, acme, destination.Spec{Label: label, Default: true, Fallback: place}).ID
		}
		ids["audit"] = create(t, acme, destination.Spec{Label: "audit", Default: true, DefaultTopics: []string{"audit.*"}}).ID
		expect := func(topic string, fallback, usable bool, want ...string) {
			t.Helper()
			var wanted []string
			for _, label := range want {
				wanted = append(wanted, ids[label])
			}
			slices.Sort(wanted)
			now := must[delivery.DefaultRoute](t)(ds.Defaults(t.Context(), topic))
			var found []string
			for _, d := range now.Destinations {
				found = append(found, d.ID)
			}
			slices.Sort(found)
			if now.Fallback != fallback || now.Usable != usable || !slices.Equal(found, wanted) {
				t.Errorf("defaults are %v, a fallback %t, usable %t; want %v", labels(now.Destinations), now.Fallback, now.Usable, want)
			}
			r := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Topic: topic, Payload: payload.JSON(1)}))
			s := status(t, acme, r.ID)
			found = nil
			for i, item := range r.Items {
				found = append(found, item.Destination)
				if item.Fallback != fallback || s.Items[i].Fallback != fallback {
					t.Errorf("the receipt says %+v, the status %+v", item, s.Items[i])
				}
			}
			slices.Sort(found)
			if !slices.Equal(found, wanted) {
				t.Errorf("delivered to %v, want %v", found, wanted)
			}
		}
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		expect("report", false, true, "primary", "also primary")
		expect("audit.login", false, true, "audit")
		check(ds.OpenBreaker(t.Context(), ids["primary"]))
		expect("report", false, true, "primary", "also primary") // one is enough
		must[*destination.Destination](t)(ds.Disable(t.Context(), ids["also primary"], ""))
		expect("report", true, true, "first")
		must[*destination.Destination](t)(ds.Disable(t.Context(), ids["first"], ""))
		expect("report", true, true, "second")
		must[*destination.Destination](t)(ds.Disable(t.Context(), ids["second"], ""))
		expect("report", false, false, "primary", "also primary") // they wait there
		check(ds.CloseBreaker(t.Context(), ids["primary"]))
		expect("report", false, true, "primary", "also primary")
		r := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1), Destinations: []string{ids["second"]}}))
		if len(r.Items) != 1 || r.Items[0].Destination != ids["second"] || r.Items[0].Fallback {
			t.Errorf("a request that names its destination goes to %+v", r.Items)
		}
	})
}

// A default that would get nothing is warned of: before it is saved, with a change, and as it is.
func TestUnusableDefaultsAreWarnedOf(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Permanent(errors.New("no"))
		}}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		ds := acme.Destinations()
		expect := func(ds *delivery.Destinations, id string, p destination.Patch, want ...string) {
			t.Helper()
			var got []string
			for _, w := range must[[]*destination.FieldError](t)(ds.ValidatePatch(t.Context(), id, p)) {
				got = append(got, w.Path+" "+w.Code)
			}
			if !slices.Equal(got, want) {
				t.Errorf("warned of %q, want %q", got, want)
			}
		}
		warnings := must[[]*destination.FieldError](t)(ds.Validate(t.Context(), destination.Spec{
			Label: "x", Config: script{Name: "n"}, Default: true, Disabled: true,
		}))
		if len(warnings) != 1 || warnings[0].Code != "disabled" {
			t.Errorf("a disabled default: %v", warnings)
		}
		d := create(t, acme, destination.Spec{})
		expect(ds, d.ID, destination.Patch{Default: destination.Set(true)})
		if _, err := ds.Disable(t.Context(), d.ID, ""); err != nil {
			t.Fatal(err)
		}
		expect(ds, d.ID, destination.Patch{})
		expect(ds, d.ID, destination.Patch{Default: destination.Set(true)}, "default disabled")
		must[*destination.Destination](t)(ds.Update(t.Context(), d.ID, destination.Patch{Default: destination.Set(true)}))
		expect(ds, d.ID, destination.Patch{}, "default disabled")
		expect(ds, d.ID, destination.Patch{Disabled: destination.Set(false)})
		must[*destination.Destination](t)(ds.Enable(t.Context(), d.ID))
		expect(ds, d.ID, destination.Patch{})
		for range 3 {
			send(t, acme, delivery.Request{})
			process(t, svc)
		}
		expect(ds, d.ID, destination.Patch{}, "default unhealthy")
		if err := errors.Join(ds.OpenBreaker(t.Context(), d.ID), ds.Pause(t.Context(), d.ID)); err != nil {
			t.Fatal(err)
		}
		expect(ds, d.ID, destination.Patch{}, "default unhealthy", "default paused")
		elsewhere := must[*delivery.DeliveryService](t)(delivery.New(db, delivery.WithHandler("vault", &vault{})))
		t.Cleanup(func() { _ = elsewhere.Close() })
		expect(elsewhere.Org("acme").Destinations(), d.ID, destination.Patch{}, "type no_handler", "default unhealthy", "default paused")

		if _, err := ds.ValidatePatch(t.Context(), d.ID, destination.Patch{IfVersion: 1}); !errors.Is(err, delivery.ErrStale) {
			t.Errorf("an old version is answered with %v", err)
		}
		var invalid *destination.ValidationError
		if _, err := ds.ValidatePatch(t.Context(), d.ID, destination.Patch{Label: destination.Set("")}); !errors.As(err, &invalid) {
			t.Errorf("an empty label is answered with %v", err)
		}
		if got := must[*destination.Destination](t)(ds.Get(t.Context(), d.ID)); got.Label != d.Label {
			t.Error("a check has changed something")
		}
	})
}

func TestRotateSecret(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc, d := openVault(t, db, &vault{})
		acme := svc.Org("acme")
		ds := acme.Destinations()
		secrets := func() (all []string) {
			for _, s := range must[[]destination.Secret](t)(ds.SigningSecrets(t.Context(), d.ID)) {
				all = append(all, s.Reveal())
			}
			return all
		}
		got := must[destination.Secret](t)(ds.RotateSecret(t.Context(), d.ID, destination.Rotation{}))
		if got.Reveal() != "generated-1" || !slices.Equal(secrets(), []string{"generated-1", "first"}) {
			t.Errorf("rotated to %v", secrets())
		}
		must[destination.Secret](t)(ds.RotateSecret(t.Context(), d.ID, destination.Rotation{Secret: destination.NewSecret("brought"), Overlap: -1}))
		if !slices.Equal(secrets(), []string{"brought"}) {
			t.Errorf("rotated to %v", secrets())
		}
		var invalid *destination.ValidationError
		for _, bad := range []destination.Rotation{{Secret: destination.NewSecret("short")}, {Overlap: destination.Days(91)}} {
			if _, err := ds.RotateSecret(t.Context(), d.ID, bad); !errors.As(err, &invalid) || strings.Contains(err.Error(), "short\"") {
				t.Errorf("%v is answered with %v", bad, err)
			}
		}
		plain := create(t, acme, destination.Spec{})
		if _, err := ds.RotateSecret(t.Context(), plain.ID, destination.Rotation{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	})
}

func TestSample(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var got []handler.Request
		f := &fake{}
		f.deliver = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			got = append(got, *r)
			return nil, errors.New("no")
		}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{})
		r := must[*delivery.Receipt](t)(acme.Destinations().Sample(t.Context(), d.ID, "report.finished"))
		process(t, svc)
		s := status(t, acme, r.ID)
		if len(got) != 1 || !got[0].Test || got[0].Topic != "report.finished" || !s.Test || s.Items[0].State != queue.Dead || s.Deadline.IsZero() {
			t.Errorf("%d attempts, %s", len(got), show(s))
		}
	})
}

// Idle destinations are tested now and then, failing ones more often, each by one process.
func TestScheduledChecks(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		v := &vault{}
		checks := delivery.WithHealthChecks(delivery.HealthChecks{Every: time.Hour, Failing: 10 * time.Minute})
		svc, d := openVault(t, db, v, c.option(), checks)
		second := service(t, db, &fake{}, delivery.WithHandler("vault", v), c.option(), checks)
		ds := svc.Org("acme").Destinations()
		events := svc.Subscribe(t.Context(), delivery.EventFilter{Destination: d.ID})
		step := func(after time.Duration, tested int, want ...delivery.EventKind) {
			t.Helper()
			c.advance(after)
			before := v.tested()
			for range 2 {
				must[delivery.Chores](t)(svc.Maintain(t.Context()))
				must[delivery.Chores](t)(second.Maintain(t.Context()))
			}
			if n := v.tested() - before; n != tested {
				t.Errorf("after %s it was tested %d times, want %d", after, n, tested)
			}
			if got := kinds(heard(events)); !slices.Equal(got, want) {
				t.Errorf("after %s the events are %v, want %v", after, got, want)
			}
		}
		report := destination.TestReport{OK: true}
		v.set(func() {
			v.test = func(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
				r := report
				return &r, nil
			}
		})
		step(time.Minute, 0)
		step(2*time.Hour, 1)
		step(time.Minute, 0)
		v.set(func() {
			report = destination.TestReport{Steps: []destination.TestStep{{Name: "connect", Finding: "nobody listens"}}}
		})
		// Only the first service hears of what it finds itself, and either may be the one that tests.
		c.advance(2 * time.Hour)
		before := v.tested()
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		if v.tested() != before+1 || !slices.Equal(kinds(heard(events)), []delivery.EventKind{delivery.CheckFailed}) {
			t.Errorf("tested %d times", v.tested()-before)
		}
		if h := must[*destination.HealthReport](t)(ds.Health(t.Context(), d.ID, 0)); h.Check == nil || h.Check.Report.OK || h.NextCheck.After(c.now().Add(10*time.Minute)) {
			t.Errorf("got %+v", h)
		}
		v.set(func() {
			report = destination.TestReport{OK: true, Warnings: []destination.Warning{{Code: "certificate_expires", Message: "soon", Until: c.now()}}}
		})
		step(11*time.Minute, 1, delivery.CheckRecovered, delivery.DestinationDrift)
		step(2*time.Hour, 1) // the same warning is no news
	})
}

// What is in use is tested once a day, for what is about to expire; its deliveries say that it is well, not its answers to tests.
func TestDestinationsInUseAreTestedDaily(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		v := &vault{}
		report := destination.TestReport{OK: true, Warnings: []destination.Warning{{Code: "certificate_expires", Message: "soon", Until: c.now()}}}
		v.test = func(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
			r := report
			return &r, nil
		}
		svc, d := openVault(t, db, v, c.option())
		acme := svc.Org("acme")
		events := svc.Subscribe(t.Context(), delivery.EventFilter{Destination: d.ID})
		day := func(tests int, want ...delivery.EventKind) {
			t.Helper()
			before := v.tested()
			for range 24 {
				send(t, acme, delivery.Request{Destinations: []string{d.ID}})
				process(t, svc)
				must[delivery.Chores](t)(svc.Maintain(t.Context()))
				c.advance(time.Hour)
			}
			if got := kinds(heard(events)); v.tested()-before != tests || !slices.Equal(got, want) {
				t.Errorf("it was tested %d times, want %d; events are %v, want %v", v.tested()-before, tests, got, want)
			}
		}
		day(0)
		day(1, delivery.DestinationDrift)
		report = destination.TestReport{Steps: []destination.TestStep{{Name: "request", Finding: "takes no tests"}}}
		day(4, delivery.CheckFailed) // every six hours, not every five minutes
		report.OK = true
		day(1, delivery.CheckRecovered)
	})
}

// What was disabled by hand is left alone, whatever the reason; what the service disabled is tested, to see it recover.
func TestDisabledByHandIsNotTested(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		v := &vault{}
		v.deliver = func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Gone(errors.New("moved"))
		}
		svc, d := openVault(t, db, v, c.option())
		acme := svc.Org("acme")
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		after := func(disabled, byService bool, tests int) {
			t.Helper()
			before := v.tested()
			c.advance(24 * time.Hour)
			must[delivery.Chores](t)(svc.Maintain(t.Context()))
			got := must[*destination.Destination](t)(acme.Destinations().Get(t.Context(), d.ID))
			if v.tested()-before != tests || got.Disabled != disabled || got.DisabledByService != byService || (got.DisabledReason != "") != disabled {
				t.Errorf("it was tested %d times, want %d, and is %+v", v.tested()-before, tests, got)
			}
		}
		must[*destination.Destination](t)(acme.Destinations().Disable(t.Context(), d.ID, "they are moving"))
		after(true, false, 0)
		must[*destination.Destination](t)(acme.Destinations().Enable(t.Context(), d.ID))
		after(false, false, 1)
		send(t, acme, delivery.Request{Destinations: []string{d.ID}})
		process(t, svc)
		after(true, true, 1)
		must[*destination.Destination](t)(acme.Destinations().Disable(t.Context(), d.ID, "known"))
		after(true, false, 0)
	})
}

func TestHealthReport(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		f.deliver = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "bad" {
				return nil, handler.Permanent(errors.New("no"))
			}
			return nil, nil
		}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		for i := range 10 {
			send(t, acme, delivery.Request{Topic: map[bool]string{true: "bad", false: "good"}[i < 4]})
		}
		process(t, svc)
		h := must[*destination.HealthReport](t)(acme.Destinations().Health(t.Context(), d.ID, time.Hour))
		if h.Attempts != 10 || h.Failed != 4 || h.Delivered != 6 || h.Dead != 4 || h.SuccessRate != 0.6 || h.Pending || h.LastUsed.IsZero() ||
			h.Latency.P50 <= 0 || h.Latency.P50 > h.Latency.P95 || h.Latency.P95 > h.Latency.P99 {
			t.Errorf("got %+v", h)
		}
	})
}

// What a destination was used for is told when the statistics by the minute are no longer there.
func TestUsageOutlivesStatistics(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "bad" {
				return nil, handler.Permanent(errors.New("no"))
			}
			return nil, nil
		}}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		d, unused := create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{})
		use := func(topics ...string) time.Time {
			for _, topic := range topics {
				send(t, acme, delivery.Request{Topic: topic})
				process(t, svc)
			}
			return c.now().Truncate(time.Minute)
		}
		expect := func(id string, attempts int64, last time.Time, want destination.Usage) {
			t.Helper()
			h := must[*destination.HealthReport](t)(acme.Destinations().Health(t.Context(), id, time.Hour))
			if h.Total != want || !h.LastUsed.Equal(last) || h.Attempts != attempts {
				t.Errorf("total %+v, last used %s, %d attempts within the hour; want %+v, %s, %d", h.Total, h.LastUsed, h.Attempts, want, last, attempts)
			}
		}
		use("good", "bad")
		c.advance(2 * time.Minute)
		last := use("good")
		expect(d.ID, 3, last, destination.Usage{Delivered: 2, Dead: 1, Attempts: 3, Failed: 1})
		for range 2 {
			c.advance(40 * 24 * time.Hour)
			must[delivery.Chores](t)(svc.Maintain(t.Context()))
			expect(d.ID, 0, last, destination.Usage{Delivered: 2, Dead: 1, Attempts: 3, Failed: 1})
		}
		if n := count(t, db, "delivery_minutes"); n != 0 {
			t.Errorf("%d minutes are left", n)
		}
		last = use("bad")
		expect(d.ID, 1, last, destination.Usage{Delivered: 2, Dead: 2, Attempts: 4, Failed: 2})
		c.advance(40 * 24 * time.Hour)
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		expect(d.ID, 0, last, destination.Usage{Delivered: 2, Dead: 2, Attempts: 4, Failed: 2})
		expect(unused.ID, 0, time.Time{}, destination.Usage{})
	})
}

// Keys are rotated while deliveries go on: nothing is lost, and then the old key is needed no more.
func TestKeysRotateUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		old, next := delivery.LocalKey("k1", testKey), delivery.LocalKey("k2", strings.Repeat("ab", 32))
		var mu sync.Mutex
		seen := map[string]int{}
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			mu.Lock()
			defer mu.Unlock()
			seen[r.ItemID]++
			return nil, nil
		}}
		with := func(keys delivery.Option) *delivery.DeliveryService {
			svc := must[*delivery.DeliveryService](t)(delivery.New(db, delivery.WithHandler("fake", f), keys, logTo(t.Output())))
			t.Cleanup(func() { _ = svc.Close() })
			return svc
		}
		before := with(delivery.WithKeys(old, next)) // knows the new one before anyone seals with it
		acme := before.Org("acme")
		const destinations, rounds = 60, 5
		for range destinations {
			create(t, acme, destination.Spec{Default: false, Tags: []string{"all"}})
		}
		after := with(delivery.WithKeys(next, old))
		ctx, cancel := context.WithCancel(t.Context())
		var loops sync.WaitGroup
		defer loops.Wait()
		defer cancel()
		for _, svc := range []*delivery.DeliveryService{before, after} {
			loops.Go(func() {
				for ctx.Err() == nil {
					if _, err := svc.ProcessDue(ctx); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
			})
		}
		var ids []string
		var all []string
		for d, err := range acme.Destinations().All(t.Context(), delivery.DestinationFilter{}) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, d.ID)
		}
		for i := range rounds {
			for _, id := range ids {
				all = append(all, send(t, acme, delivery.Request{Destinations: []string{id}}))
			}
			if i == 1 {
				chores := must[delivery.Chores](t)(after.Maintain(t.Context()))
				if chores.ConfigsResealed != destinations {
					t.Errorf("%d were sealed anew", chores.ConfigsResealed)
				}
			}
		}
		for _, id := range all {
			if s := must[*delivery.Status](t)(acme.WaitFor(within(t, time.Minute), id)); s.State != queue.Completed {
				t.Fatalf("it is %s", show(s))
			}
		}
		if use := must[map[string]int](t)(after.KeysInUse(t.Context())); use["k2"] != destinations || use["k1"] != 0 {
			t.Errorf("in use are %v", use)
		}
		alone := with(delivery.WithKeys(next))
		for _, id := range ids {
			if _, err := alone.Org("acme").Destinations().Update(t.Context(), id, destination.Patch{Merge: map[string]any{"name": "m"}}); err != nil {
				t.Fatal(err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(seen) != destinations*rounds {
			t.Errorf("%d of %d were delivered", len(seen), destinations*rounds)
		}
	})
}

// What is sealed for one destination opens at no other.
func TestSwappedCiphertextDoesNotOpen(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		a, b := create(t, acme, destination.Spec{Label: "a", Default: true}), create(t, acme, destination.Spec{Label: "b", Default: true})
		sealed := map[string][]byte{}
		for _, label := range []string{"a", "b"} {
			var text []byte
			if err := db.QueryRowContext(t.Context(), "select sealed from delivery_destinations where label = $1", label).Scan(&text); err != nil {
				t.Fatal(err)
			}
			sealed[label] = text
		}
		if len(sealed["a"]) == 0 || bytes.Equal(sealed["a"], sealed["b"]) {
			t.Fatal("nothing is sealed")
		}
		for label, other := range map[string]string{"a": "b", "b": "a"} {
			if _, err := db.ExecContext(t.Context(), "update delivery_destinations set sealed = $1 where label = $2", sealed[other], label); err != nil {
				t.Fatal(err)
			}
		}
		send(t, acme, delivery.Request{})
		process(t, svc)
		if n := f.count(); n != 0 {
			t.Errorf("%d attempts with another's credentials", n)
		}
		for _, d := range []*destination.Destination{a, b} {
			if _, err := acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"name": "x"}}); err == nil {
				t.Error("another's credentials were opened")
			}
		}
	})
}

// Credentials come out nowhere, whatever fails: not in logs, errors, statuses, events or the database.
func TestCanariesAreSeenNowhere(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		canary := func(name string) string { return "canary-" + name + "-Zq8Xw3Rk7Lm2Vt9Yb4Nc6Hd1" }
		secrets := map[string]string{}
		for _, name := range []string{"bearer", "header", "basic", "client", "signing", "query", "token"} {
			secrets[name] = canary(name)
		}
		var echoed sync.Map
		echo := func(status int) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { // as careless as can be
				body, _ := io.ReadAll(r.Body)
				_ = r.ParseForm()
				w.Header().Set("X-Echo", r.Header.Get("Authorization")+r.Header.Get("X-Secret"))
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(status)
				fmt.Fprintf(w, "%v %v %s %v", r.Header, r.URL, body, r.Form)
				echoed.Store(r.URL.Path, true)
			}
		}
		mux := http.NewServeMux()
		for _, status := range []int{200, 301, 400, 401, 403, 404, 409, 410, 429, 500, 503} {
			mux.Handle(fmt.Sprintf("/%d", status), echo(status))
		}
		mux.HandleFunc("/cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // or it does not notice that the client has gone
			<-r.Context().Done()
		})
		mux.HandleFunc("/token/bad", echo(401))
		mux.HandleFunc("/token/good", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, secrets["token"])
		})
		server := httptest.NewServer(mux)
		t.Cleanup(server.Close)
		secure := httptest.NewTLSServer(mux)
		secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		t.Cleanup(secure.Close)

		var said bytes.Buffer // all that anyone is shown
		var mu sync.Mutex
		say := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(&said, format+"\n", args...)
		}
		logs := writer(func(p []byte) { say("%s", p) })
		svc := must[*delivery.DeliveryService](t)(delivery.New(db,
			delivery.WithHandler("webhook", webhook.New()), delivery.WithKeys(delivery.LocalKey("k1", testKey)),
			delivery.WithHandler("fake", &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) { panic("oh") }}),
			delivery.WithLogger(slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))),
			delivery.WithNetwork(delivery.Network{Loopback: true}), delivery.WithRetry(retry.Policy{Retries: 1, First: time.Millisecond}),
			delivery.WithLimits(destination.Limits{Timeout: destination.Duration(500 * time.Millisecond)}),
			delivery.WithBreaker(retry.Breaker{Failures: 2, DisableFailures: 2, DisableAfter: -1}),
		))
		t.Cleanup(func() { _ = svc.Close() })
		acme := svc.Org("acme")
		ds := acme.Destinations()
		events := svc.Subscribe(t.Context(), delivery.EventFilter{})

		auths := map[string]webhook.Auth{
			"bearer": webhook.Bearer(secrets["bearer"]), "basic": webhook.Basic("user", secrets["basic"]),
			"bad client": webhook.ClientCredentials(server.URL+"/token/bad", "id", secrets["client"]),
			"client":     webhook.ClientCredentials(server.URL+"/token/good", "id", secrets["client"]),
		}
		urls := []string{"http://127.0.0.1:1/refused", secure.URL + "/200", server.URL + "/cut", server.URL + "/slow"}
		for _, status := range []int{200, 301, 400, 401, 403, 404, 409, 410, 429, 500, 503} {
			urls = append(urls, fmt.Sprintf("%s/%d", server.URL, status))
		}
		var ids []string
		for i, url := range urls {
			for name, auth := range auths {
				if i%len(auths) != 0 && name != "bearer" && !strings.HasSuffix(url, "/401") && !strings.HasSuffix(url, "/500") {
					continue
				}
				config := webhook.Config{
					URL: url + "?key=" + secrets["query"], Auth: auth,
					SecretHeaders:  map[string]destination.Secret{"X-Secret": destination.NewSecret(secrets["header"])},
					SigningSecrets: []destination.Secret{destination.NewSecret("raw:" + secrets["signing"])},
				}
				d := must[*destination.Destination](t)(ds.Create(t.Context(), destination.Spec{Label: url + name, Config: config}))
				ids = append(ids, d.ID)
				say("%+v %s", d, shown(t, d))
				report, err := ds.Test(t.Context(), d.ID)
				say("%+v %v %s", report, err, shown(t, report))
				config.Method = "BREW"
				_, err = ds.TestSpec(t.Context(), destination.Spec{Label: "x", Config: config})
				say("%v %+v %#v", err, err, config)
				_, err = ds.Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"method": 7, "auth": map[string]any{"token": secrets["bearer"], "what": 1}}})
				say("%v %s", err, shown(t, err))
			}
		}
		ids = append(ids, create(t, acme, destination.Spec{Config: script{Name: "n", Token: destination.NewSecret(secrets["token"])}}).ID)
		var deliveries []string
		for len(ids) > 0 {
			n := min(50, len(ids))
			deliveries = append(deliveries, send(t, acme, delivery.Request{Destinations: ids[:n], Topic: "t"}))
			ids = ids[n:]
		}
		for range 3 {
			process(t, svc)
		}
		_, err := svc.Maintain(t.Context())
		say("%v", err)
		for _, id := range deliveries {
			s := status(t, acme, id)
			say("%+v %s %s", s, show(s), shown(t, s))
			explained, err := acme.Explain(t.Context(), id)
			say("%+v %v", explained, err)
		}
		page, err := acme.DeadLetters().List(t.Context(), delivery.DeadFilter{}, "")
		say("%s %v", shown(t, page), err)
		for _, e := range heard(events) {
			say("%+v", e)
		}
		stored := dump(t, db)
		if _, ok := echoed.Load("/401"); !ok || !strings.Contains(said.String(), "[redacted]") {
			t.Error("nothing was echoed, or nothing redacted: the test does not test")
		}
		for name, secret := range secrets {
			if name == "query" { // in the URL's query: stored, as the URL is no secret, and not shown in records
				continue
			}
			for form, text := range map[string]string{
				"as it is": secret, "in hex": hex.EncodeToString([]byte(secret)), "in base64": base64.StdEncoding.EncodeToString([]byte(secret)),
				"with its user": base64.StdEncoding.EncodeToString([]byte("user:" + secret)), "a part": secret[:len(secret)-6],
			} {
				for where, all := range map[string]string{"what is shown": said.String(), "the database": stored} {
					if i := strings.Index(all, text); i >= 0 {
						t.Errorf("the secret %s is in %s, %s: %s", name, where, form, all[max(0, i-300):min(len(all), i+200)])
					}
				}
			}
		}
	})
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// Types have a schema for forms, and warnings come apart from errors.
func TestValidateAndSchemas(t *testing.T) {
	t.Parallel()
	svc := service(t, open(t, "sqlite"), &fake{}, delivery.WithHandler("vault", &vault{}), delivery.WithHandler("webhook", webhook.New()))
	for _, info := range svc.Types() {
		if info.Schema == nil {
			continue
		}
		var schema map[string]any
		if err := json.Unmarshal(info.Schema, &schema); err != nil || schema["type"] != "object" {
			t.Errorf("%s: %v, %s", info.Title, err, info.Schema)
		}
	}
	ds := svc.Org("acme").Destinations()
	warnings, err := ds.Validate(t.Context(), destination.Spec{Label: "x", Config: locked{Name: "suspicious"}})
	if err != nil || len(warnings) != 1 || warnings[0].Path != "config.name" || warnings[0].Code != "suspicious" {
		t.Errorf("got %v, %v", warnings, err)
	}
	var invalid *destination.ValidationError
	_, err = ds.Validate(t.Context(), destination.Spec{Config: locked{}})
	if !errors.As(err, &invalid) || len(invalid.Fields) != 2 {
		t.Errorf("got %v", err)
	}
	_, err = ds.Create(t.Context(), destination.Spec{Label: "x", Default: true, Disabled: true, Fallback: -1, Config: locked{Name: "n"}})
	if !errors.As(err, &invalid) {
		t.Errorf("a fallback of -1 is answered with %v", err)
	}
}
