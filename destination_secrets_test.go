package delivery_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
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
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestRotateSecret(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc, d := testkit.OpenVault(t, db, &testkit.Vault{})
		acme := svc.Org("acme")
		ds := acme.Destinations()
		secrets := func() (all []string) {
			for _, s := range testkit.Try(ds.SigningSecrets(t.Context(), d.ID)).Must(t) {
				all = append(all, s.Reveal())
			}
			return all
		}
		got := testkit.Try(ds.RotateSecret(t.Context(), d.ID, destination.Rotation{})).Must(t)
		if got.Reveal() != "generated-1" || !slices.Equal(secrets(), []string{"generated-1", "first"}) {
			t.Errorf("rotated to %v", secrets())
		}
		testkit.Try(ds.RotateSecret(t.Context(), d.ID, destination.Rotation{Secret: destination.NewSecret("brought"), Overlap: -1})).Must(t)
		if !slices.Equal(secrets(), []string{"brought"}) {
			t.Errorf("rotated to %v", secrets())
		}
		var invalid *destination.ValidationError
		for _, bad := range []destination.Rotation{{Secret: destination.NewSecret("short")}, {Overlap: destination.Days(91)}} {
			if _, err := ds.RotateSecret(t.Context(), d.ID, bad); !errors.As(err, &invalid) || strings.Contains(err.Error(), "short\"") {
				t.Errorf("%v is answered with %v", bad, err)
			}
		}
		plain := testkit.Create(t, acme, destination.Spec{})
		if _, err := ds.RotateSecret(t.Context(), plain.ID, destination.Rotation{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	})
}

// Keys are rotated while deliveries go on: nothing is lost, and then the old key is needed no more.
func TestKeysRotateUnderLoad(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		old, next := delivery.LocalKey("k1", testkit.Key), delivery.LocalKey("k2", strings.Repeat("ab", 32))
		var mu sync.Mutex
		seen := map[string]int{}
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			mu.Lock()
			defer mu.Unlock()
			seen[r.ItemID]++
			return nil, nil
		}}
		with := func(keys delivery.Option) *delivery.DeliveryService {
			svc := testkit.Try(delivery.New(db, delivery.WithHandler("fake", f), keys, testkit.LogTo(t.Output()))).Must(t)
			t.Cleanup(func() { _ = svc.Close() })
			return svc
		}
		before := with(delivery.WithKeys(old, next)) // knows the new one before anyone seals with it
		acme := before.Org("acme")
		const destinations, rounds = 60, 5
		for range destinations {
			testkit.Create(t, acme, destination.Spec{Default: false, Tags: []string{"all"}})
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
				all = append(all, testkit.Send(t, acme, delivery.Request{Destinations: []string{id}}))
			}
			if i == 1 {
				chores := testkit.Try(after.Maintain(t.Context())).Must(t)
				if chores.ConfigsResealed != destinations {
					t.Errorf("%d were sealed anew", chores.ConfigsResealed)
				}
			}
		}
		for _, id := range all {
			if s := testkit.Try(acme.WaitFor(testkit.Within(t, time.Minute), id)).Must(t); s.State != queue.Completed {
				t.Fatalf("it is %s", testkit.Show(s))
			}
		}
		if use := testkit.Try(after.KeysInUse(t.Context())).Must(t); use["k2"] != destinations || use["k1"] != 0 {
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
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		a, b := testkit.Create(t, acme, destination.Spec{Label: "a", Default: true}), testkit.Create(t, acme, destination.Spec{Label: "b", Default: true})
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
		testkit.Send(t, acme, delivery.Request{})
		testkit.Process(t, svc)
		if n := f.Count(); n != 0 {
			t.Errorf("%d attempts with another's credentials", n)
		}
		for _, d := range []*destination.Destination{a, b} {
			if _, err := acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"name": "x"}}); err == nil {
				t.Error("another's credentials were opened")
			}
		}
	})
}

// Credentials come out nowhere, whatever fails: not in logs, errors, statuses, events or the
// database.
func TestCanariesAreSeenNowhere(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
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
		svc := testkit.Try(delivery.New(db,
			delivery.WithHandler("webhook", webhook.New()), delivery.WithKeys(delivery.LocalKey("k1", testkit.Key)),
			delivery.WithHandler("fake", &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) { panic("oh") }}),
			delivery.WithLogger(slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))),
			delivery.WithNetwork(delivery.Network{Loopback: true}), delivery.WithRetry(retry.Policy{Retries: 1, First: time.Millisecond}),
			delivery.WithLimits(destination.Limits{Timeout: destination.Duration(500 * time.Millisecond)}),
			delivery.WithBreaker(retry.Breaker{Failures: 2, DisableFailures: 2, DisableAfter: -1}),
		)).Must(t)
		t.Cleanup(func() { _ = svc.Close() })
		acme := svc.Org("acme")
		ds := acme.Destinations()
		events := svc.Subscribe(t.Context(), event.Filter{})

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
				d := testkit.Try(ds.Create(t.Context(), destination.Spec{Label: url + name, Config: config})).Must(t)
				ids = append(ids, d.ID)
				say("%+v %s", d, testkit.JSON(t, d))
				report, err := ds.Test(t.Context(), d.ID)
				say("%+v %v %s", report, err, testkit.JSON(t, report))
				config.Method = "BREW"
				_, err = ds.TestSpec(t.Context(), destination.Spec{Label: "x", Config: config})
				say("%v %+v %#v", err, err, config)
				_, err = ds.Update(t.Context(), d.ID, destination.Patch{Merge: map[string]any{"method": 7, "auth": map[string]any{"token": secrets["bearer"], "what": 1}}})
				say("%v %s", err, testkit.JSON(t, err))
			}
		}
		ids = append(ids, testkit.Create(t, acme, destination.Spec{Config: testkit.Script{Name: "n", Token: destination.NewSecret(secrets["token"])}}).ID)
		var deliveries []string
		for len(ids) > 0 {
			n := min(50, len(ids))
			deliveries = append(deliveries, testkit.Send(t, acme, delivery.Request{Destinations: ids[:n], Topic: "t"}))
			ids = ids[n:]
		}
		for range 3 {
			testkit.Process(t, svc)
		}
		_, err := svc.Maintain(t.Context())
		say("%v", err)
		for _, id := range deliveries {
			s := testkit.Status(t, acme, id)
			say("%+v %s %s", s, testkit.Show(s), testkit.JSON(t, s))
			explained, err := acme.Explain(t.Context(), id)
			say("%+v %v", explained, err)
		}
		page, err := acme.DeadLetters().List(t.Context(), delivery.DeadFilter{}, "")
		say("%s %v", testkit.JSON(t, page), err)
		for _, e := range testkit.Heard(events) {
			say("%+v", e)
		}
		stored := testkit.Dump(t, db)
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
