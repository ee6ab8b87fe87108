package sqlite_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
	"github.com/deliverykit/delivery/queue"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func open(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", dbtest.SQLite(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	svc, err := delivery.New(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Migrate(context.Background()); err != nil {
		t.Fatal(err)
	}
	return db
}

// What is in flight is counted without a look at what waits.
func TestCountsStayOnTheirIndex(t *testing.T) {
	t.Parallel()
	db := open(t)
	for name, query := range sqlite.Counts() {
		check(t, db, name, query, []any{"acme"}, "delivery_queue", "delivery_queue_gated (organization_id=?")
	}
}

// Lists, retries and purges of dead letters search by an index, and are in order without a sort.
func TestDeadLetterPlansStayOnTheirIndexes(t *testing.T) {
	t.Parallel()
	db := open(t)
	const id = "00000000-0000-7000-8000-000000000100"
	last := sqlstore.Key{Delivery: id, N: 1}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, f := range map[string]sqlstore.DeadFilter{
		"all": {}, "one destination": {Destination: id}, "one delivery": {Delivery: id},
		"all criteria": {Destination: id, Topic: "x", Reasons: []queue.Reason{queue.Permanent}, From: at, Before: at.Add(time.Hour), Until: at},
	} {
		index := "PRIMARY KEY"
		if f.Destination != "" {
			index = "delivery_dead_letters_destination"
		}
		for page, p := range map[string]sqlstore.DeadPage{
			"first": {Descending: true, Limit: 101}, "next": {Descending: true, Limit: 101, After: &last},
			"to change": {Limit: 500, Lock: true}, "to change, next": {Limit: 500, Lock: true, After: &last},
		} {
			query, args := sqlstore.DeadQuery(sqlite.Dialect{}, "acme", f, p)
			check(t, db, name+", "+page, query, args, "l", index)
		}
		query, args := sqlstore.PurgeQuery(sqlite.Dialect{}, "acme", f, &last, last)
		check(t, db, name+", purge", query, args, "l", index)
	}
}

func check(t *testing.T, db *sql.DB, name, query string, args []any, table, index string) {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	plan := ""
	err = sqlstore.Scan(t.Context(), tx, func(rows *sql.Rows) error {
		var id, parent, unused int
		var detail string
		err := rows.Scan(&id, &parent, &unused, &detail)
		plan += detail + "\n"
		return err
	}, "explain query plan "+sqlite.Dialect{}.Rebind(query), args...)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(plan, "SCAN ") || strings.Contains(plan, "TEMP B-TREE") {
		t.Errorf("%s reads too much or sorts:\n%s", name, plan)
	}
	if first, _, _ := strings.Cut(plan, "\n"); !strings.HasPrefix(first, "SEARCH "+table+" ") || !strings.Contains(first, index) {
		t.Errorf("%s does not go by %s:\n%s", name, index, plan)
	}
}
