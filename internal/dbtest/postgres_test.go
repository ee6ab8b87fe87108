package dbtest_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"

	"github.com/deliverykit/delivery/internal/dbtest"
)

// serverURL names the server that the tests run on, and fails or skips the
// test as Postgres does without one.
func serverURL(t *testing.T) string {
	t.Helper()
	dbtest.Require(t, false)
	return os.Getenv(dbtest.EnvURL)
}

func databaseExists(t *testing.T, server, name string) bool {
	t.Helper()
	db := open(t, "pgx", server)
	return queryString(t, db, "select count(*)::text from pg_database where datname = $1", name) == "1"
}

func databaseName(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

func TestPostgresIsEmptyAndOnesOwn(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			a, b := open(t, driver, dbtest.Postgres(t)), open(t, driver, dbtest.Postgres(t))
			execute(t, a, "create table t (x integer)")
			if got := queryString(t, b, "select count(*)::text from pg_tables where schemaname = 'public'"); got != "0" {
				t.Errorf("a second database has %s tables of the first", got)
			}
			if got := queryString(t, a, "show server_encoding"); got != "UTF8" {
				t.Errorf("the encoding is %s, want UTF8", got)
			}
		})
	}
}

func TestPostgresIsDroppedThoughInUse(t *testing.T) { //nolint:tparallel // looks at what is left once the subtest has ended
	t.Parallel()
	server := serverURL(t)
	var name string
	var left *pgx.Conn
	t.Run("test", func(t *testing.T) {
		u := dbtest.Postgres(t)
		name = databaseName(t, u)
		var err error
		if left, err = pgx.Connect(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		if !databaseExists(t, server, name) {
			t.Error("the database is missing while the test runs")
		}
	})
	if databaseExists(t, server, name) {
		t.Error("the database outlived its test")
	}
	if err := left.Ping(t.Context()); err == nil {
		t.Error("a session outlived its database")
	}
	_ = left.Close(t.Context())
}

func TestPostgresFromPreparesOnce(t *testing.T) {
	t.Parallel()
	dbtest.Require(t, false) // a goroutine must not end the test
	name := dbtest.UniqueName(time.Now(), "")
	var prepared atomic.Int32
	prepare := func(u string) error {
		prepared.Add(1)
		return onConn(u, "create table t (x integer); insert into t select generate_series(1, 10)")
	}
	var all sync.WaitGroup
	urls := make([]string, 8)
	for i := range urls {
		all.Go(func() { urls[i] = dbtest.PostgresFrom(t, name, prepare) })
	}
	all.Wait()
	for _, u := range urls {
		db := open(t, "postgres", u)
		execute(t, db, "delete from t where x = 1")
		if got := queryString(t, db, "select count(*)::text from t"); got != "9" {
			t.Errorf("found %s rows, want the 9 left of the template's 10", got)
		}
	}
	if got := prepared.Load(); got != 1 {
		t.Errorf("prepared %d times, want once", got)
	}
}

func TestPostgresFromDisconnectsWhatPrepareLeft(t *testing.T) {
	t.Parallel()
	var left *pgx.Conn
	u := dbtest.PostgresFrom(t, dbtest.UniqueName(time.Now(), ""), func(u string) error {
		var err error
		if left, err = pgx.Connect(context.Background(), u); err != nil {
			return err
		}
		_, err = left.Exec(context.Background(), "create table t (x integer)")
		return err
	})
	if err := left.Ping(t.Context()); err == nil {
		t.Error("the session in the template is alive, and would fail a copy")
	}
	_ = left.Close(t.Context())
	if got := queryString(t, open(t, "pgx", u), "select count(*)::text from t"); got != "0" {
		t.Errorf("found %s rows in an empty table", got)
	}
}

func TestTemplateErrorIsEveryCallers(t *testing.T) {
	t.Parallel()
	server := serverURL(t)
	broken := errors.New("migration 3 is broken")
	for _, tc := range []struct {
		name    string
		prepare func(string) error
		want    string
	}{
		{name: "returned", prepare: func(string) error { return broken }, want: broken.Error()},
		{name: "ended its goroutine", prepare: func(string) error { runtime.Goexit(); return nil }, want: "did not return"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var templates dbtest.Templates
			var first sync.WaitGroup
			first.Go(func() { _, _ = templates.Get(server, "x", tc.prepare) })
			first.Wait()
			_, err := templates.Get(server, "x", tc.prepare)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the second caller got %v, want an error with %q", err, tc.want)
			}
			dbtest.Run(fakeM(func() int { return 0 }), &templates, os.Stderr, func() error { return nil })
		})
	}
}

func TestDropStale(t *testing.T) {
	t.Parallel()
	server := serverURL(t)
	old := dbtest.UniqueName(dbtest.Ago(dbtest.StaleAge+time.Hour), "template_")
	young := dbtest.UniqueName(dbtest.Ago(time.Hour), "")
	for _, name := range []string{old, young} {
		if err := dbtest.CreateDatabase(t.Context(), server, name, "template0"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := dbtest.DropDatabase(context.Background(), server, name); err != nil {
				t.Error(err)
			}
		})
	}
	dbtest.DropStale(t.Context(), server, time.Now())
	if databaseExists(t, server, old) {
		t.Error("a database that was left behind two days ago is still there")
	}
	if !databaseExists(t, server, young) {
		t.Error("a database of an hour ago, which may be in use, is gone")
	}
}

func TestStale(t *testing.T) {
	t.Parallel()
	now := time.Now()
	long := now.Add(-dbtest.StaleAge - time.Hour)
	for name, want := range map[string]bool{
		dbtest.UniqueName(long, ""):          true,
		dbtest.UniqueName(long, "template_"): true,
		dbtest.UniqueName(now, ""):           false,
		dbtest.UniqueName(now, "template_"):  false,
		"delivery_test_":                     false,
		"delivery_test_by-hand":              false,
		"postgres":                           false,
	} {
		if got := dbtest.Stale(name, now); got != want {
			t.Errorf("stale(%s) = %v, want %v", name, got, want)
		}
	}
}

func TestUniqueNameFitsPostgres(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		name := dbtest.UniqueName(time.Now(), "template_")
		if len(name) > 63 {
			t.Fatalf("%s has %d bytes: PostgreSQL cuts names at 63", name, len(name))
		}
		if seen[name] {
			t.Fatalf("%s came twice", name)
		}
		seen[name] = true
	}
}

func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	for server, want := range map[string]string{
		"postgres://u:p@127.0.0.1:5/postgres":              "postgres://u:p@127.0.0.1:5/x?sslmode=disable",
		"postgresql://localhost":                           "postgresql://localhost/x?sslmode=disable",
		"postgres://[::1]/a":                               "postgres://[::1]/x?sslmode=disable",
		"postgres:///a?host=%2Frun%2Fpostgresql":           "postgres:///x?host=%2Frun%2Fpostgresql&sslmode=disable",
		"postgres://u@localhost/a?sslmode=require":         "postgres://u@localhost/x?sslmode=require",
		"postgres://u@db.example.com/a?connect_timeout=10": "postgres://u@db.example.com/x?connect_timeout=10",
	} {
		if got, err := dbtest.DatabaseURL(server, "x"); err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", server, got, err, want)
		}
	}
	for _, server := range []string{"host=localhost password=hunter2", "mysql://u:hunter2@localhost/a", "postgres://u:hunter2@local host/"} {
		if _, err := dbtest.DatabaseURL(server, "x"); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got error %v, want one that does not tell the password", server, err)
		}
	}
}

func onConn(dsn, stmt string) error {
	ctx := context.Background()
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, stmt)
	return errors.Join(err, c.Close(ctx))
}
