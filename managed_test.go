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
