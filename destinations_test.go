package delivery_test

import (
	"context"
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
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestDestinationLife(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		ds := acme.Destinations()
		spec := destination.Spec{
			Label: "SIEM", Description: "Ours\nat night", Icon: "https://example.com/i.png", Instructions: "Ask Bob", Tags: []string{"a", "b"},
			Config: script{Name: "one", Token: destination.NewSecret("tok-1")}, Default: true,
			Limits: destination.Limits{Timeout: destination.Hours(1), MaxBytes: 10}, Retry: retry.Policy{Retries: 7},
		}
		d := must[*destination.Destination](t)(ds.Create(t.Context(), spec))
		got := must[*destination.Destination](t)(ds.Get(t.Context(), strings.ToUpper(d.ID)))
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
		got = must[*destination.Destination](t)(ds.Update(t.Context(), d.ID, destination.Patch{
			Config: destination.As("fake", back), Label: destination.Set("SIEM 2"), IfVersion: 1,
		}))
		if got.Version != 2 || got.Label != "SIEM 2" || config(t, got)["name"] != "two" || got.Description != spec.Description {
			t.Errorf("got %+v", got)
		}
		token := func(want string) {
			t.Helper()
			must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", []byte("y"))}))
			must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
			if c := f.requests[len(f.requests)-1].Config.(script); c.Token.Reveal() != want {
				t.Errorf("the handler got the token %q, want %q", c.Token.Reveal(), want)
			}
		}
		token("tok-1")
		must[*destination.Destination](t)(ds.Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"token": "tok-2"}}))
		token("tok-2")
		must[*destination.Destination](t)(ds.Update(t.Context(), d.ID, destination.Patch{Config: script{Name: "three", Token: destination.NewSecret("tok-3")}}))
		token("tok-3")
		if _, err := ds.Update(t.Context(), d.ID, destination.Patch{Label: destination.Set("x"), IfVersion: 1}); !errors.Is(err, delivery.ErrStale) {
			t.Errorf("an old version: %v", err)
		}

		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)}))
		if err := ds.Delete(t.Context(), d.ID, destination.RefusePending); !errors.Is(err, delivery.ErrInUse) {
			t.Errorf("with a pending item: %v", err)
		}
		if err := ds.Delete(t.Context(), d.ID, destination.CancelPending); err != nil {
			t.Fatal(err)
		}
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if s.State != queue.AllCancelled || s.Items[0].Reason != queue.DestinationGone || s.Items[0].Label != "SIEM 2" {
			t.Errorf("status is %s", show(s))
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
	each(t, func(t *testing.T, db *sql.DB) {
		ds := service(t, db, &fake{}).Org("acme").Destinations()
		d := create(t, service(t, db, &fake{}).Org("acme"), destination.Spec{})
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
		got := must[*destination.Destination](t)(ds.Get(t.Context(), d.ID))
		if got.Label != "l" || got.Description != "d" || got.Instructions != "i" || config(t, got)["name"] != "n2" || got.Version != 6 {
			t.Errorf("got %+v with %s", got, got.Config)
		}
	})
}

func TestListPages(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{})
		acme := svc.Org("acme")
		var want []string
		for range 103 {
			want = append(want, create(t, acme, destination.Spec{}).ID)
		}
		create(t, svc.Org("other"), destination.Spec{})
		var got []string
		for cursor, pages := "", 0; ; pages++ {
			page := must[delivery.Page[*destination.Destination]](t)(acme.Destinations().List(t.Context(), delivery.DestinationFilter{}, cursor))
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
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{}, delivery.WithHandler("params", paramsHandler{}))
		ds := svc.Org("acme").Destinations()
		ok := script{Name: "n"}
		for name, c := range map[string]struct {
			spec  destination.Spec
			paths []string
		}{
			"empty":          {destination.Spec{}, []string{"label", "config"}},
			"no handler":     {destination.Spec{Label: "x", Config: destination.As("smtp", `{}`)}, []string{"type"}},
			"not JSON":       {destination.Spec{Label: "x", Config: destination.As("fake", `{`)}, []string{"config"}},
			"unknown field":  {destination.Spec{Label: "x", Config: destination.As("fake", `{"name":"n","nam":1}`)}, []string{"config.nam"}},
			"wrong type":     {destination.Spec{Label: "x", Config: destination.As("fake", `{"name":1}`)}, []string{"config.name"}},
			"its own check":  {destination.Spec{Label: "x", Config: script{}}, []string{"config.name"}},
			"placeholder":    {destination.Spec{Label: "x", Config: destination.As("fake", `{"name":"n","token":"[redacted]"}`)}, []string{"config"}},
			"unserializable": {destination.Spec{Label: "x", Config: destination.As("fake", func() {})}, []string{"config"}},
			"tags":           {destination.Spec{Label: "x", Config: ok, Tags: []string{"", "a", "a"}}, []string{"tags[0]", "tags[2]"}},
			"several": {destination.Spec{Label: strings.Repeat("x", 201), Icon: "javascript:alert(1)", Config: ok, Tags: []string{"\x00"},
				Limits: destination.Limits{Timeout: -1}, Retry: retry.Policy{First: -1}},
				[]string{"label", "icon", "tags[0]", "limits.timeout", "retry"}},
		} {
			before := count(t, db, "delivery_destinations")
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
			if count(t, db, "delivery_destinations") != before {
				t.Errorf("%s: something was written", name)
			}
		}
		d := create(t, svc.Org("acme"), destination.Spec{Config: ok})
		for name, p := range map[string]destination.Patch{
			"another type": {Config: destination.As("params", `{}`)},
			"both":         {Config: ok, Merge: map[string]any{}},
			"placeholder":  {Config: script{Name: "n", Token: destination.NewSecret(destination.Redacted)}},
			"cleared":      {Merge: map[string]any{"name": nil}},
		} {
			var v *destination.ValidationError
			if _, err := ds.Update(t.Context(), d.ID, p); !errors.As(err, &v) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := must[*destination.Destination](t)(ds.Get(t.Context(), d.ID)); got.Version != 1 {
			t.Errorf("a refused update made version %d", got.Version)
		}
	})
}

// paramsHandler takes params.
type paramsHandler struct{}

func (paramsHandler) Deliver(context.Context, *handler.Request) (*handler.Result, error) {
	return nil, nil
}

func (paramsHandler) ParseParams(raw json.RawMessage) error {
	var p struct {
		To string `json:"to"`
	}
	if err := handler.Decode(raw, &p); err != nil {
		return err
	}
	return destination.Require("to", p.To)
}

func TestParamsAreChecked(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{}, delivery.WithHandler("params", paramsHandler{}))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Config: destination.As("params", `{}`)})
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
	each(t, func(t *testing.T, db *sql.DB) {
		const canary = "canary-5f2c"
		svc := service(t, db, &fake{})
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Config: script{Name: "n", Token: destination.NewSecret(canary)}})
		if text := dump(t, db); strings.Contains(text, canary) {
			t.Errorf("the database holds the secret: %s", text)
		}
		if text := fmt.Sprintf("%+v %s", d, must[[]byte](t)(json.Marshal(d))); strings.Contains(text, canary) {
			t.Errorf("the destination shows the secret: %s", text)
		}

		keyless, err := delivery.New(db, delivery.WithHandler("fake", &fake{}))
		if err != nil {
			t.Fatal(err)
		}
		before := count(t, db, "delivery_destinations")
		if _, err := keyless.Org("acme").Destinations().Create(t.Context(), destination.Spec{
			Label: "x", Config: script{Name: "n", Token: destination.NewSecret(canary)},
		}); !errors.Is(err, delivery.ErrNoKeys) || count(t, db, "delivery_destinations") != before {
			t.Errorf("without keys: %v", err)
		}
		must[*destination.Destination](t)(keyless.Org("acme").Destinations().Create(t.Context(), destination.Spec{Label: "x", Config: script{Name: "n"}}))
		// A service without keys can change what is not sealed, and nothing else.
		must[*destination.Destination](t)(keyless.Org("acme").Destinations().Update(t.Context(), d.ID, destination.Patch{Label: destination.Set("y")}))
		if _, err := keyless.Org("acme").Destinations().Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"name": "z"}}); err == nil {
			t.Error("a sealed config was changed without keys")
		}

		// Nor does a ciphertext open in another row.
		other := create(t, acme, destination.Spec{Default: true, Config: script{Name: "n", Token: destination.NewSecret("other")}})
		execSQL(t, db, `update delivery_destinations set sealed = (select sealed from delivery_destinations where id = '`+d.ID+`') where id = '`+other.ID+`'`)
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)}))
		fresh := &fake{}
		if pass := must[delivery.Pass](t)(service(t, db, fresh).ProcessDue(t.Context())); pass.Attempts != 0 {
			t.Errorf("with a swapped ciphertext: %+v", pass)
		}
		if s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID)); s.State != queue.Queued {
			t.Errorf("status is %s", show(s))
		}
	})
}

// allTables are those that the catalog of the database lists.
func allTables(t *testing.T, db *sql.DB) (names []string) {
	t.Helper()
	query := `select table_name from information_schema.tables where table_name like 'delivery%' order by 1`
	if isSQLite(db) {
		query = `select name from sqlite_master where type = 'table' and name like 'delivery%' order by 1`
	}
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if err := rows.Err(); err != nil || len(names) < 20 {
		t.Fatalf("found the tables %q, %v", names, err)
	}
	return names
}

// dump returns all text of all tables but that of security events.
func dump(t *testing.T, db *sql.DB) string {
	t.Helper()
	var b strings.Builder
	for _, table := range allTables(t, db) {
		if table == "delivery_security_events" {
			continue // what a refused call may change
		}
		rows, err := db.QueryContext(t.Context(), "select * from "+table)
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			values := make([]any, len(columns))
			for i := range values {
				values[i] = new(any)
			}
			if err := rows.Scan(values...); err != nil {
				t.Fatal(err)
			}
			for _, v := range values {
				fmt.Fprintf(&b, "%s ", *v.(*any))
			}
			b.WriteString("\n")
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil { //nolint:sqlclosecheck // a failure before it ends the test
			t.Fatal(err)
		}
	}
	return b.String()
}

// Each call with another organization's id is answered as if there were nothing of that id.
func TestForeignIDsAreNotFound(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		svc := service(t, db, &fake{})
		acme, other := svc.Org("acme"), svc.Org("other")
		d := create(t, acme, destination.Spec{Default: true})
		id := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).ID
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
