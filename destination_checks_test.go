package delivery_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

func labels(all []*destination.Destination) (found []string) {
	for _, d := range all {
		found = append(found, d.Label)
	}
	return found
}

func TestListFilters(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("vault", &testkit.Vault{}))
		acme := svc.Org("acme")
		ds := acme.Destinations()
		testkit.Create(t, acme, destination.Spec{Label: "Alpha 100%", Default: true, Tags: []string{"eu"}})
		testkit.Create(t, acme, destination.Spec{Label: "beta_1", Disabled: true})
		broken := testkit.CreateVault(t, acme, destination.Spec{Label: "Gamma"})
		if err := ds.OpenBreaker(t.Context(), broken.ID); err != nil {
			t.Fatal(err)
		}
		testkit.Create(t, svc.Org("other"), destination.Spec{Label: "Alpha of another"})
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
			testkit.Create(t, svc.Org("many"), destination.Spec{Label: fmt.Sprint(i)})
		}
		var all []string
		for after, pages := "", 0; ; pages++ {
			page := testkit.Try(svc.Org("many").Destinations().List(t.Context(), delivery.DestinationFilter{}, after)).Must(t)
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
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc, d := testkit.OpenVault(t, db, &testkit.Vault{})
		ds := svc.Org("acme").Destinations()
		c := testkit.Try(ds.Duplicate(t.Context(), d.ID, "")).Must(t)
		if c.ID == d.ID || c.Label != d.Label+" (copy)" || !c.Disabled || c.Default || c.Type != "vault" || !bytes.Equal(c.Config, d.Config) {
			t.Errorf("of %+v the copy is %+v", d, c)
		}
		secrets := testkit.Try(ds.SigningSecrets(t.Context(), c.ID)).Must(t)
		if len(secrets) != 1 || secrets[0].Reveal() != "first" {
			t.Errorf("the copy signs with %d secrets", len(secrets))
		}
		long := testkit.Create(t, svc.Org("acme"), destination.Spec{Label: strings.Repeat("é", 100)})
		if c := testkit.Try(ds.Duplicate(t.Context(), long.ID, "")).Must(t); c.Label != strings.Repeat("é", 96)+" (copy)" {
			t.Errorf("the copy of a long label has the label %q", c.Label)
		}
	})
}

func TestDeleteWithPendingItems(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		ds := acme.Destinations()
		d := testkit.Create(t, acme, destination.Spec{})
		later := delivery.Request{Destinations: []string{d.ID}, NotBefore: c.Now().Add(time.Hour), Payload: payload.JSON(1)}
		id := testkit.Send(t, acme, later)
		if err := ds.Delete(t.Context(), d.ID, destination.RefusePending); !errors.Is(err, delivery.ErrInUse) {
			t.Errorf("refused with %v", err)
		}
		if err := ds.Delete(t.Context(), d.ID, destination.DrainPending); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.Deliver(t.Context(), later); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("what is being deleted takes something new: %v", err)
		}
		testkit.Try(svc.Maintain(t.Context())).Must(t)
		if got := testkit.Try(ds.Get(t.Context(), d.ID)).Must(t); got.DrainingAt.IsZero() {
			t.Errorf("it is %+v", got)
		}
		c.Advance(2 * time.Hour)
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, id); s.State != queue.Completed {
			t.Errorf("it is %s", testkit.Show(s))
		}
		if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.DestinationsDrained != 1 {
			t.Errorf("got %+v", chores)
		}
		if _, err := ds.Get(t.Context(), d.ID); !errors.Is(err, delivery.ErrNotFound) {
			t.Error(err)
		}
		if s := testkit.Status(t, acme, id); s.State != queue.Completed || s.Items[0].Label != d.Label {
			t.Errorf("its history is %s", testkit.Show(s))
		}
		other := testkit.Create(t, acme, destination.Spec{})
		id = testkit.Send(t, acme, delivery.Request{Destinations: []string{other.ID}, NotBefore: c.Now().Add(time.Hour)})
		if err := ds.Delete(t.Context(), other.ID, destination.CancelPending); err != nil {
			t.Fatal(err)
		}
		if s := testkit.Status(t, acme, id); s.Items[0].State != queue.Cancelled || s.Items[0].Reason != queue.DestinationGone {
			t.Errorf("it is %s", testkit.Show(s))
		}
	})
}

// Where no primary default is usable, the lowest fallback that is steps in, and receipts and
// statuses say so.
func TestFallbacks(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		ds := acme.Destinations()
		ids := map[string]string{}
		for label, place := range map[string]int{"primary": 0, "also primary": 0, "first": 1, "second": 2} {
			ids[label] = testkit.Create(t, acme, destination.Spec{Label: label, Default: true, Fallback: place}).ID
		}
		ids["audit"] = testkit.Create(t, acme, destination.Spec{Label: "audit", Default: true, DefaultTopics: []string{"audit.*"}}).ID
		expect := func(topic string, fallback, usable bool, want ...string) {
			t.Helper()
			var wanted []string
			for _, label := range want {
				wanted = append(wanted, ids[label])
			}
			slices.Sort(wanted)
			now := testkit.Try(ds.Defaults(t.Context(), topic)).Must(t)
			var found []string
			for _, d := range now.Destinations {
				found = append(found, d.ID)
			}
			slices.Sort(found)
			if now.Fallback != fallback || now.Usable != usable || !slices.Equal(found, wanted) {
				t.Errorf("defaults are %v, a fallback %t, usable %t; want %v", labels(now.Destinations), now.Fallback, now.Usable, want)
			}
			r := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Topic: topic, Payload: payload.JSON(1)})).Must(t)
			s := testkit.Status(t, acme, r.ID)
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
		testkit.Try(ds.Disable(t.Context(), ids["also primary"], "")).Must(t)
		expect("report", true, true, "first")
		testkit.Try(ds.Disable(t.Context(), ids["first"], "")).Must(t)
		expect("report", true, true, "second")
		testkit.Try(ds.Disable(t.Context(), ids["second"], "")).Must(t)
		expect("report", false, false, "primary", "also primary") // they wait there
		check(ds.CloseBreaker(t.Context(), ids["primary"]))
		expect("report", false, true, "primary", "also primary")
		r := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1), Destinations: []string{ids["second"]}})).Must(t)
		if len(r.Items) != 1 || r.Items[0].Destination != ids["second"] || r.Items[0].Fallback {
			t.Errorf("a request that names its destination goes to %+v", r.Items)
		}
	})
}

// A default that would get nothing is warned of: before it is saved, with a change, and as it is.
func TestUnusableDefaultsAreWarnedOf(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Permanent(errors.New("no"))
		}}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		ds := acme.Destinations()
		expect := func(ds *delivery.Destinations, id string, p destination.Patch, want ...string) {
			t.Helper()
			var got []string
			for _, w := range testkit.Try(ds.ValidatePatch(t.Context(), id, p)).Must(t) {
				got = append(got, w.Path+" "+w.Code)
			}
			if !slices.Equal(got, want) {
				t.Errorf("warned of %q, want %q", got, want)
			}
		}
		warnings := testkit.Try(ds.Validate(t.Context(), destination.Spec{
			Label: "x", Config: testkit.Script{Name: "n"}, Default: true, Disabled: true,
		})).Must(t)
		if len(warnings) != 1 || warnings[0].Code != "disabled" {
			t.Errorf("a disabled default: %v", warnings)
		}
		d := testkit.Create(t, acme, destination.Spec{})
		expect(ds, d.ID, destination.Patch{Default: destination.Set(true)})
		if _, err := ds.Disable(t.Context(), d.ID, ""); err != nil {
			t.Fatal(err)
		}
		expect(ds, d.ID, destination.Patch{})
		expect(ds, d.ID, destination.Patch{Default: destination.Set(true)}, "default disabled")
		testkit.Try(ds.Update(t.Context(), d.ID, destination.Patch{Default: destination.Set(true)})).Must(t)
		expect(ds, d.ID, destination.Patch{}, "default disabled")
		expect(ds, d.ID, destination.Patch{Disabled: destination.Set(false)})
		testkit.Try(ds.Enable(t.Context(), d.ID)).Must(t)
		expect(ds, d.ID, destination.Patch{})
		for range 3 {
			testkit.Send(t, acme, delivery.Request{})
			testkit.Process(t, svc)
		}
		expect(ds, d.ID, destination.Patch{}, "default unhealthy")
		if err := errors.Join(ds.OpenBreaker(t.Context(), d.ID), ds.Pause(t.Context(), d.ID)); err != nil {
			t.Fatal(err)
		}
		expect(ds, d.ID, destination.Patch{}, "default unhealthy", "default paused")
		elsewhere := testkit.Try(delivery.New(db, delivery.WithHandler("vault", &testkit.Vault{}))).Must(t)
		t.Cleanup(func() { _ = elsewhere.Close() })
		expect(elsewhere.Org("acme").Destinations(), d.ID, destination.Patch{}, "type no_handler", "default unhealthy", "default paused")

		if _, err := ds.ValidatePatch(t.Context(), d.ID, destination.Patch{IfVersion: 1}); !errors.Is(err, delivery.ErrStale) {
			t.Errorf("an old version is answered with %v", err)
		}
		var invalid *destination.ValidationError
		if _, err := ds.ValidatePatch(t.Context(), d.ID, destination.Patch{Label: destination.Set("")}); !errors.As(err, &invalid) {
			t.Errorf("an empty label is answered with %v", err)
		}
		if got := testkit.Try(ds.Get(t.Context(), d.ID)).Must(t); got.Label != d.Label {
			t.Error("a check has changed something")
		}
	})
}

func TestSample(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var got []handler.Request
		f := &testkit.Fake{}
		f.Do = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			got = append(got, *r)
			return nil, errors.New("no")
		}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{})
		r := testkit.Try(acme.Destinations().Sample(t.Context(), d.ID, "report.finished")).Must(t)
		testkit.Process(t, svc)
		s := testkit.Status(t, acme, r.ID)
		if len(got) != 1 || !got[0].Test || got[0].Topic != "report.finished" || !s.Test || s.Items[0].State != queue.Dead || s.Deadline.IsZero() {
			t.Errorf("%d attempts, %s", len(got), testkit.Show(s))
		}
	})
}

// Types have a schema for forms, and warnings come apart from errors.
func TestValidateAndSchemas(t *testing.T) {
	t.Parallel()
	svc := testkit.Service(t, testkit.Open(t, "sqlite"), &testkit.Fake{}, delivery.WithHandler("vault", &testkit.Vault{}), delivery.WithHandler("webhook", webhook.New()))
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
	warnings, err := ds.Validate(t.Context(), destination.Spec{Label: "x", Config: testkit.Locked{Name: "suspicious"}})
	if err != nil || len(warnings) != 1 || warnings[0].Path != "config.name" || warnings[0].Code != "suspicious" {
		t.Errorf("got %v, %v", warnings, err)
	}
	var invalid *destination.ValidationError
	_, err = ds.Validate(t.Context(), destination.Spec{Config: testkit.Locked{}})
	if !errors.As(err, &invalid) || len(invalid.Fields) != 2 {
		t.Errorf("got %v", err)
	}
	_, err = ds.Create(t.Context(), destination.Spec{Label: "x", Default: true, Disabled: true, Fallback: -1, Config: testkit.Locked{Name: "n"}})
	if !errors.As(err, &invalid) {
		t.Errorf("a fallback of -1 is answered with %v", err)
	}
}
