package testkit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // tests run on every driver
	_ "github.com/lib/pq"              // likewise
	_ "modernc.org/sqlite"             // likewise

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/dbtest"
)

// allTables are those that the catalog of the database lists.
func allTables(t *testing.T, db *sql.DB) (names []string) {
	t.Helper()
	query := `select table_name from information_schema.tables where table_name like 'delivery%' order by 1`
	if IsSQLite(db) {
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

// Dump returns all text of all tables but that of security events.
func Dump(t *testing.T, db *sql.DB) string {
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

// Databases are what every test of the service runs on.
var Databases = []string{"sqlite", "lib/pq", "pgx"}

// Each runs a test on every database, and through both drivers of PostgreSQL.
func Each(t *testing.T, test func(t *testing.T, db *sql.DB)) {
	t.Helper()
	t.Parallel()
	for _, name := range Databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, Open(t, name))
		})
	}
}

// Open returns a migrated database of its own for the test.
func Open(t *testing.T, name string) *sql.DB {
	t.Helper()
	db, _, _ := OpenNamed(t, name)
	return db
}

// OpenNamed is Open that also returns the driver and data source by which another process opens it.
func OpenNamed(t *testing.T, name string) (db *sql.DB, driver, dsn string) {
	t.Helper()
	driver = map[string]string{"sqlite": "sqlite", "lib/pq": "postgres", "pgx": "pgx"}[name]
	if name == "sqlite" {
		dsn = dbtest.SQLite(t)
	} else {
		dsn = dbtest.PostgresFrom(t, "migrated", func(url string) error {
			db, err := sql.Open("postgres", url)
			if err != nil {
				return err
			}
			defer db.Close()
			return Migrate(db)
		})
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if name == "sqlite" {
		if err := Migrate(db); err != nil {
			t.Fatal(err)
		}
	}
	return db, driver, dsn
}

// Migrate migrates a database.
func Migrate(db *sql.DB) error {
	svc, err := delivery.New(db)
	if err != nil {
		return err
	}
	return svc.Migrate(context.Background())
}

// Exec runs a statement.
func Exec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

// LeaseItems leases items as a process does that dies right after its claim.
func LeaseItems(t *testing.T, db *sql.DB, until time.Time, gated int, condition string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `select lane, min(seq), max(seq) from delivery_queue where `+condition+` group by lane`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var spans []string
	for rows.Next() {
		var lane, first, last int64
		if err := rows.Scan(&lane, &first, &last); err != nil {
			t.Fatal(err)
		}
		spans = append(spans, fmt.Sprintf("[%d, %d, %d]", lane, first, last))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	id := 1 + rand.Int64N(math.MaxInt64)
	Exec(t, db, fmt.Sprintf(`insert into delivery_leases (id, until, spans) values (%d, %s, '[%s]')`, id, TimeLiteral(db, until), strings.Join(spans, ", ")))
	Exec(t, db, fmt.Sprintf(`update delivery_queue set lease = %d, gated = %d where %s`, id, gated, condition))
}

// IsSQLite reports whether a database is SQLite.
func IsSQLite(db *sql.DB) bool { return strings.Contains(fmt.Sprintf("%T", db.Driver()), "sqlite") }

// TimeLiteral writes a time as SQL.
func TimeLiteral(db *sql.DB, at time.Time) string {
	if IsSQLite(db) {
		return fmt.Sprint(at.UnixMicro())
	}
	return "'" + at.UTC().Format(time.RFC3339Nano) + "'"
}

// Count counts the rows of a table.
func Count(t *testing.T, db *sql.DB, table string) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "select count(*) from "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
