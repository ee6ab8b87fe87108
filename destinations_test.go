package delivery_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestDestinationLife(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		ds := acme.Destinations()
		spec := destination.Spec{
			Label: "SIEM", Description: "Ours\nat night", Icon: "https://example.com/i.png", Instructions: "Ask Bob", Tags: []string{"a", "b"},
			Config: testkit.Script{Name: "one", Token: destination.NewSecret("tok-1")}, Default: true,
			Limits: destination.Limits{Timeout: destination.Hours(1), MaxBytes: 10}, Retry: retry.Policy{Retries: 7},
		}
		d := testkit.Try(ds.Create(t.Context(), spec)).Must(t)
		got := testkit.Try(ds.Get(t.Context(), strings.ToUpper(d.ID))).Must(t)
		if got.Label != "SIEM" || got.Description != spec.Description || got.Icon != spec.Icon || got.Instructions != "Ask Bob" ||
			strings.Join(got.Tags, " ") != "a b" || !got.Default || got.Limits != spec.Limits || !cmp.Equal(got.Retry, spec.Retry) ||
			got.Version != 1 || got.Type != "fake" || !got.CreatedAt.Equal(d.CreatedAt) {
			t.Errorf("got %+v", got)
		}
		if s := config(t, got); s["name"] != "one" || s["token"] != destination.Redacted {
			t.Errorf("config is %s", got.Config)
		}

		// What was read is changed and sent back: the secret stays as it was.
		back := strings.Replace(string(got.Config), `"one"`, `"two"`, 1)
		got = testkit.Try(ds.Update(t.Context(), d.ID, destination.Patch{
			Config: destination.As("fake", back), Label: destination.Set("SIEM 2"), IfVersion: 1,
		})).Must(t)
		if got.Version != 2 || got.Label != "SIEM 2" || config(t, got)["name"] != "two" || got.Description != spec.Description {
			t.Errorf("got %+v", got)
		}
		token := func(want string) {
			t.Helper()
			testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", []byte("y"))})).Must(t)
			testkit.Try(svc.ProcessDue(t.Context())).Must(t)
			if c := f.Requests[len(f.Requests)-1].Config.(testkit.Script); c.Token.Reveal() != want {
				t.Errorf("the handler got the token %q, want %q", c.Token.Reveal(), want)
			}
		}
		token("tok-1")
		testkit.Try(ds.Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"token": "tok-2"}})).Must(t)
		token("tok-2")
		testkit.Try(ds.Update(t.Context(), d.ID, destination.Patch{Config: testkit.Script{Name: "three", Token: destination.NewSecret("tok-3")}})).Must(t)
		token("tok-3")
		if _, err := ds.Update(t.Context(), d.ID, destination.Patch{Label: destination.Set("x"), IfVersion: 1}); !errors.Is(err, delivery.ErrStale) {
			t.Errorf("an old version: %v", err)
		}

		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t)
		if err := ds.Delete(t.Context(), d.ID, destination.RefusePending); !errors.Is(err, delivery.ErrInUse) {
			t.Errorf("with a pending item: %v", err)
		}
		if err := ds.Delete(t.Context(), d.ID, destination.CancelPending); err != nil {
			t.Fatal(err)
		}
		s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
		if s.State != queue.AllCancelled || s.Items[0].Reason != queue.DestinationGone || s.Items[0].Label != "SIEM 2" {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if _, err := ds.Get(t.Context(), d.ID); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("after its deletion: %v", err)
		}
		if _, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID}}); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("delivering to a deleted destination: %v", err)
		}
	})
}

func config(t *testing.T, d *destination.Destination) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(d.Config, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestConcurrentUpdatesAllHappen(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		ds := testkit.Service(t, db, &testkit.Fake{}).Org("acme").Destinations()
		d := testkit.Create(t, testkit.Service(t, db, &testkit.Fake{}).Org("acme"), destination.Spec{})
		patches := []destination.Patch{
			{Label: destination.Set("l")}, {Description: destination.Set("d")}, {Instructions: destination.Set("i")},
			{Merge: map[string]any{"name": "n2"}}, {Merge: map[string]any{"token": "t2"}},
		}
		var wg sync.WaitGroup
		for _, p := range patches {
			wg.Go(func() {
				if _, err := ds.Update(t.Context(), d.ID, p); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := testkit.Try(ds.Get(t.Context(), d.ID)).Must(t)
		if got.Label != "l" || got.Description != "d" || got.Instructions != "i" || config(t, got)["name"] != "n2" || got.Version != 6 {
			t.Errorf("got %+v with %s", got, got.Config)
		}
	})
}

func TestListPages(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		var want []string
		for range 103 {
			want = append(want, testkit.Create(t, acme, destination.Spec{}).ID)
		}
		testkit.Create(t, svc.Org("other"), destination.Spec{})
		var got []string
		for cursor, pages := "", 0; ; pages++ {
			page := testkit.Try(acme.Destinations().List(t.Context(), delivery.DestinationFilter{}, cursor)).Must(t)
			for _, d := range page.Items {
				got = append(got, d.ID)
			}
			if cursor = page.Next; cursor == "" {
				if pages != 1 {
					t.Errorf("%d further pages", pages)
				}
				break
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%d of %d destinations, or another order", len(got), len(want))
		}
		if _, err := acme.Destinations().List(t.Context(), delivery.DestinationFilter{}, "bad"); err == nil {
			t.Error("a bad cursor is no error")
		}
	})
}

func TestInvalidDestinationsNameEachField(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("params", testkit.ParamsHandler{}))
		ds := svc.Org("acme").Destinations()
		ok := testkit.Script{Name: "n"}
		for name, c := range map[string]struct {
			spec  destination.Spec
			paths []string
		}{
			"empty":          {destination.Spec{}, []string{"label", "config"}},
			"no handler":     {destination.Spec{Label: "x", Config: destination.As("smtp", `{}`)}, []string{"type"}},
			"not JSON":       {destination.Spec{Label: "x", Config: destination.As("fake", `{`)}, []string{"config"}},
			"unknown field":  {destination.Spec{Label: "x", Config: destination.As("fake", `{"name":"n","nam":1}`)}, []string{"config.nam"}},
			"wrong type":     {destination.Spec{Label: "x", Config: destination.As("fake", `{"name":1}`)}, []string{"config.name"}},
			"its own check":  {destination.Spec{Label: "x", Config: testkit.Script{}}, []string{"config.name"}},
			"placeholder":    {destination.Spec{Label: "x", Config: destination.As("fake", `{"name":"n","token":"[redacted]"}`)}, []string{"config"}},
			"unserializable": {destination.Spec{Label: "x", Config: destination.As("fake", func() {})}, []string{"config"}},
			"tags":           {destination.Spec{Label: "x", Config: ok, Tags: []string{"", "a", "a"}}, []string{"tags[0]", "tags[2]"}},
			"several": {destination.Spec{Label: strings.Repeat("x", 201), Icon: "javascript:alert(1)", Config: ok, Tags: []string{"\x00"},
				Limits: destination.Limits{Timeout: -1}, Retry: retry.Policy{First: -1}},
				[]string{"label", "icon", "tags[0]", "limits.timeout", "retry"}},
		} {
			before := testkit.Count(t, db, "delivery_destinations")
			_, err := ds.Create(t.Context(), c.spec)
			var v *destination.ValidationError
			if !errors.As(err, &v) {
				t.Errorf("%s: %v", name, err)
				continue
			}
			var paths []string
			for _, f := range v.Fields {
				paths = append(paths, f.Path)
			}
			if strings.Join(paths, " ") != strings.Join(c.paths, " ") {
				t.Errorf("%s: paths are %q, want %q (%v)", name, paths, c.paths, err)
			}
			if testkit.Count(t, db, "delivery_destinations") != before {
				t.Errorf("%s: something was written", name)
			}
		}
		d := testkit.Create(t, svc.Org("acme"), destination.Spec{Config: ok})
		for name, p := range map[string]destination.Patch{
			"another type": {Config: destination.As("params", `{}`)},
			"both":         {Config: ok, Merge: map[string]any{}},
			"placeholder":  {Config: testkit.Script{Name: "n", Token: destination.NewSecret(destination.Redacted)}},
			"cleared":      {Merge: map[string]any{"name": nil}},
		} {
			var v *destination.ValidationError
			if _, err := ds.Update(t.Context(), d.ID, p); !errors.As(err, &v) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := testkit.Try(ds.Get(t.Context(), d.ID)).Must(t); got.Version != 1 {
			t.Errorf("a refused update made version %d", got.Version)
		}
	})
}

func TestParamsAreChecked(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("params", testkit.ParamsHandler{}))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Config: destination.As("params", `{}`)})
		send := func(params any) error {
			_, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID},
				PerDestination: map[string]delivery.Override{d.ID: {Params: params}}})
			return err
		}
		if err := send(map[string]string{"to": "me"}); err != nil {
			t.Error(err)
		}
		if err := send(map[string]string{"to": ""}); err == nil || !strings.Contains(err.Error(), d.ID) || !strings.Contains(err.Error(), "params.to") {
			t.Errorf("bad params: %v", err)
		}
	})
}

// Secrets are stored sealed or not at all.
func TestSecretsAreSealed(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		const canary = "canary-5f2c"
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Config: testkit.Script{Name: "n", Token: destination.NewSecret(canary)}})
		if text := testkit.Dump(t, db); strings.Contains(text, canary) {
			t.Errorf("the database holds the secret: %s", text)
		}
		if text := fmt.Sprintf("%+v %s", d, testkit.Try(json.Marshal(d)).Must(t)); strings.Contains(text, canary) {
			t.Errorf("the destination shows the secret: %s", text)
		}

		keyless, err := delivery.New(db, delivery.WithHandler("fake", &testkit.Fake{}))
		if err != nil {
			t.Fatal(err)
		}
		before := testkit.Count(t, db, "delivery_destinations")
		if _, err := keyless.Org("acme").Destinations().Create(t.Context(), destination.Spec{
			Label: "x", Config: testkit.Script{Name: "n", Token: destination.NewSecret(canary)},
		}); !errors.Is(err, delivery.ErrNoKeys) || testkit.Count(t, db, "delivery_destinations") != before {
			t.Errorf("without keys: %v", err)
		}
		testkit.Try(keyless.Org("acme").Destinations().Create(t.Context(), destination.Spec{Label: "x", Config: testkit.Script{Name: "n"}})).Must(t)
		// A service without keys can change what is not sealed, and nothing else.
		testkit.Try(keyless.Org("acme").Destinations().Update(t.Context(), d.ID, destination.Patch{Label: destination.Set("y")})).Must(t)
		if _, err := keyless.Org("acme").Destinations().Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"name": "z"}}); err == nil {
			t.Error("a sealed config was changed without keys")
		}

		// Nor does a ciphertext open in another row.
		other := testkit.Create(t, acme, destination.Spec{Default: true, Config: testkit.Script{Name: "n", Token: destination.NewSecret("other")}})
		testkit.Exec(t, db, `update delivery_destinations set sealed = (select sealed from delivery_destinations where id = '`+d.ID+`') where id = '`+other.ID+`'`)
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t)
		fresh := &testkit.Fake{}
		if pass := testkit.Try(testkit.Service(t, db, fresh).ProcessDue(t.Context())).Must(t); pass.Attempts != 0 {
			t.Errorf("with a swapped ciphertext: %+v", pass)
		}
		if s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t); s.State != queue.Queued {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// Each call with another organization's id is answered as if there were nothing of that id.
func TestForeignIDsAreNotFound(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme, other := svc.Org("acme"), svc.Org("other")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		id := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t).ID
		ctx := t.Context()
		for name, call := range map[string]func() error{
			"Status":  func() error { _, err := other.Status(ctx, id); return err },
			"WaitFor": func() error { _, err := other.WaitFor(ctx, id); return err },
			"Cancel":  func() error { return other.Cancel(ctx, id) },
			"Get":     func() error { _, err := other.Destinations().Get(ctx, d.ID); return err },
			"Update": func() error {
				_, err := other.Destinations().Update(ctx, d.ID, destination.Patch{Label: destination.Set("x")})
				return err
			},
			"Delete":  func() error { return other.Destinations().Delete(ctx, d.ID, destination.CancelPending) },
			"Test":    func() error { _, err := other.Destinations().Test(ctx, d.ID); return err },
			"Secrets": func() error { _, err := other.Destinations().SigningSecrets(ctx, d.ID); return err },
			"Deliver": func() error {
				_, err := other.Deliver(ctx, delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID}})
				return err
			},
			"malformed":  func() error { _, err := other.Status(ctx, "'--"); return err },
			"other kind": func() error { _, err := acme.Status(ctx, d.ID); return err },
		} {
			if err := call(); !errors.Is(err, delivery.ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"", "a\x00b", "\xff", strings.Repeat("x", 201)} {
			if _, err := svc.Org(name).Status(ctx, id); !errors.Is(err, delivery.ErrOrganization) {
				t.Errorf("organization %q: %v", name, err)
			}
		}
	})
}
