package sqlite_test

import (
	"context"
	"database/sql"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/queuestore/queuetest"
	"github.com/deliverykit/delivery/internal/queuestore/sqlite"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqltest"
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

const (
	inFlightShapes = "testdata/in_flight.sql"
	deadShapes     = "testdata/dead_letters.sql"
)

// The statements that are built are those of the golden files, which the tests of plans read.
func TestBuiltStatementsAreTheGoldenOnes(t *testing.T) {
	t.Parallel()
	counts := []sqltest.Shape{{Name: "of destinations", Query: sqlite.InFlight()["in_flight"]}}
	var dead []sqltest.Shape
	for _, s := range queuetest.AllDeadLetters(sqlite.Native{}) {
		dead = append(dead, s.Shape)
	}
	if err := sqltest.Golden(inFlightShapes, counts); err != nil {
		t.Error(err)
	}
	if err := sqltest.Golden(deadShapes, dead); err != nil {
		t.Error(err)
	}
}

// A claim reads the columns that the scanner of deliveries expects.
func TestClaimReadsTheContent(t *testing.T) {
	t.Parallel()
	words := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if !strings.Contains(words(sqlite.Claim()), " q.deadline, "+words(sqlstore.ContentColumns)+" from delivery_queue") {
		t.Errorf("claim.sql does not end its columns with %s", sqlstore.ContentColumns)
	}
}

// The queries in files search by an index, and need no sort for their order.
func TestQueriesStayOnTheirIndexes(t *testing.T) {
	t.Parallel()
	db := open(t)
	files, err := fs.Glob(os.DirFS("queries"), "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	whole := regexp.MustCompile(`(?m)^SCAN (q|d|delivery_[a-z_]+)$`) // and not "USING INDEX"
	parameter := regexp.MustCompile(`\?\d+`)
	for _, file := range files {
		query := sqlstore.ReadQuery(os.DirFS("queries"), file)
		parameters := parameter.FindAllString(query, -1)
		slices.Sort(parameters)
		plan := explain(t, db, query, make([]any, len(slices.Compact(parameters))))
		if whole.MatchString(plan) {
			t.Errorf("%s reads a whole table:\n%s", file, plan)
		}
		if strings.Contains(plan, "TEMP B-TREE") {
			t.Errorf("%s sorts:\n%s", file, plan)
		}
	}
}

// What is in flight is counted without a look at what waits.
func TestCountsStayOnTheirIndex(t *testing.T) {
	t.Parallel()
	db := open(t)
	for name, query := range sqlite.InFlight() {
		check(t, db, name, query, []any{"acme"}, "delivery_queue", "delivery_queue_gated (organization_id=?")
	}
}

// Lists, retries and purges of dead letters search by an index and need no sort for their order.
func TestDeadLetterPlansStayOnTheirIndexes(t *testing.T) {
	t.Parallel()
	db := open(t)
	shapes, err := sqltest.Read(deadShapes)
	if err != nil {
		t.Fatal(err)
	}
	letters := queuetest.AllDeadLetters(sqlite.Native{})
	if len(shapes) != len(letters) {
		t.Fatalf("%d shapes are in the file, %d are built", len(shapes), len(letters))
	}
	for i, s := range letters {
		index := "PRIMARY KEY"
		if s.ByDestination {
			index = "delivery_dead_letters_destination"
		}
		check(t, db, s.Name, shapes[i].Query, s.Args, "l", index)
	}
}

func explain(t *testing.T, db *sql.DB, query string, args []any) (plan string) {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	err = sqlstore.Scan(t.Context(), tx, func(rows *sql.Rows) error {
		var id, parent, unused int
		var detail string
		err := rows.Scan(&id, &parent, &unused, &detail)
		plan += detail + "\n"
		return err
	}, "explain query plan "+query, args...)
	if err != nil {
		t.Fatalf("%v in %s", err, query)
	}
	return plan
}

func check(t *testing.T, db *sql.DB, name, query string, args []any, table, index string) {
	t.Helper()
	plan := explain(t, db, query, args)
	if strings.Contains(plan, "SCAN ") || strings.Contains(plan, "TEMP B-TREE") {
		t.Errorf("%s reads too much or sorts:\n%s", name, plan)
	}
	first, _, _ := strings.Cut(plan, "\n")
	if !strings.HasPrefix(first, "SEARCH "+table+" ") || !strings.Contains(first, index) {
		t.Errorf("%s does not go by %s:\n%s", name, index, plan)
	}
}
