package dbtest_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery/internal/dbtest"
)

func TestSQLite(t *testing.T) {
	t.Parallel()
	a, b := open(t, "sqlite", dbtest.SQLite(t)), open(t, "sqlite", dbtest.SQLite(t))
	for pragma, want := range map[string]string{
		"journal_mode": "wal",
		"synchronous":  "1", // NORMAL
		"busy_timeout": "10000",
		"foreign_keys": "1",
	} {
		if got := queryString(t, a, "pragma "+pragma); got != want {
			t.Errorf("%s is %s, want %s", pragma, got, want)
		}
	}
	execute(t, a, "create table t (x integer)")
	if got := queryString(t, b, "select count(*) from sqlite_master"); got != "0" {
		t.Errorf("a second database has %s tables of the first", got)
	}
}

func TestSQLiteDSNNamesAnyPath(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "50% a?b#c d.db")
	execute(t, open(t, "sqlite", dbtest.SQLiteDSN(path)), "create table t (x integer)")
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the database is elsewhere: %v", err)
	}
}

func open(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func execute(t *testing.T, db *sql.DB, stmt string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), stmt); err != nil {
		t.Fatalf("%s: %v", stmt, err)
	}
}

func queryString(t *testing.T, db *sql.DB, query string, args ...any) string {
	t.Helper()
	var s string
	if err := db.QueryRowContext(t.Context(), query, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return s
}
