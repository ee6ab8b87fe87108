package dbtest_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/dbtest"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	const url = "postgres://127.0.0.1/postgres"
	for _, tc := range []struct {
		name string
		env  map[string]string
		own  bool
		want dbtest.Verdict
		says string
	}{
		{name: "server given", env: map[string]string{dbtest.EnvURL: url}, want: dbtest.Proceed},
		{name: "server given wins over skip", env: map[string]string{dbtest.EnvURL: url, dbtest.EnvSkip: "1", "CI": "true"}, want: dbtest.Proceed},
		{name: "nothing set", want: dbtest.Refuse, says: "make test"},
		{name: "nothing set in CI", env: map[string]string{"CI": "true"}, want: dbtest.Refuse, says: "make test"},
		{name: "skip", env: map[string]string{dbtest.EnvSkip: "1"}, want: dbtest.Skip, says: "NOT TESTED"},
		{name: "skip=0", env: map[string]string{dbtest.EnvSkip: "0"}, want: dbtest.Refuse, says: dbtest.EnvURL},
		{name: "skip in CI", env: map[string]string{dbtest.EnvSkip: "1", "CI": "true"}, want: dbtest.Refuse, says: "unset " + dbtest.EnvSkip},
		{name: "skip in a CI that tells its name", env: map[string]string{dbtest.EnvSkip: "1", "CI": "woodpecker"}, want: dbtest.Refuse, says: "CI"},
		{name: "skip with CI=false", env: map[string]string{dbtest.EnvSkip: "1", "CI": "false"}, want: dbtest.Skip, says: "NOT TESTED"},
		{name: "own server", own: true, want: dbtest.Proceed},
		{name: "own server, another given", own: true, env: map[string]string{dbtest.EnvURL: url}, want: dbtest.Proceed},
		{name: "own server, skip", own: true, env: map[string]string{dbtest.EnvSkip: "1"}, want: dbtest.Skip, says: "NOT TESTED"},
		{name: "own server, skip in CI", own: true, env: map[string]string{dbtest.EnvSkip: "1", "CI": "1"}, want: dbtest.Refuse, says: "CI"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, why := dbtest.Decide(func(k string) string { return tc.env[k] }, tc.own)
			if got != tc.want {
				t.Errorf("got verdict %d (%s), want %d", got, why, tc.want)
			}
			if !strings.Contains(why, tc.says) || (tc.says == "" && why != "") {
				t.Errorf("said %q, want it to say %q", why, tc.says)
			}
		})
	}
}

// witness records how a helper ended the test it was given.
type witness struct {
	testing.TB
	fatal, skipped string
}

func (w *witness) Helper() {}

func (w *witness) Fatal(args ...any) {
	w.fatal, _ = args[0].(string)
	runtime.Goexit()
}

func (w *witness) Skip(args ...any) {
	w.skipped, _ = args[0].(string)
	runtime.Goexit()
}

func witnessed(t *testing.T, f func(tb testing.TB)) *witness {
	t.Helper()
	w := &witness{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(w)
	}()
	<-done
	return w
}

func TestWithoutAServer(t *testing.T) {
	t.Setenv(dbtest.EnvURL, "")
	t.Setenv(dbtest.EnvSkip, "")
	t.Setenv("CI", "")
	helpers := map[string]func(tb testing.TB){
		"Postgres":     func(tb testing.TB) { tb.Helper(); dbtest.Postgres(tb) },
		"PostgresFrom": func(tb testing.TB) { tb.Helper(); dbtest.PostgresFrom(tb, "x", func(string) error { return nil }) },
	}
	for name, helper := range helpers {
		if w := witnessed(t, helper); !strings.Contains(w.fatal, "make test") || w.skipped != "" {
			t.Errorf("%s: failed with %q, skipped with %q; want a failure that tells what to run", name, w.fatal, w.skipped)
		}
	}
	t.Setenv(dbtest.EnvSkip, "1")
	helpers["Cluster"] = func(tb testing.TB) { tb.Helper(); dbtest.Cluster(tb, dbtest.Options{}) }
	for name, helper := range helpers {
		if w := witnessed(t, helper); w.fatal != "" || !strings.Contains(w.skipped, "SKIPPED") {
			t.Errorf("%s: failed with %q, skipped with %q; want it skipped", name, w.fatal, w.skipped)
		}
	}
	t.Setenv("CI", "true")
	for name, helper := range helpers {
		if w := witnessed(t, helper); w.skipped != "" || !strings.Contains(w.fatal, "CI") {
			t.Errorf("%s: failed with %q, skipped with %q; want a failure, as CI skips nothing", name, w.fatal, w.skipped)
		}
	}
}
