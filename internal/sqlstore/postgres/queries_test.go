package postgres_test

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/postgres"
	"github.com/deliverykit/delivery/internal/sqlstore/sqltest"
	"github.com/deliverykit/delivery/queue"
)

const (
	enqueueShapes = "testdata/enqueue.sql"
	deadShapes    = "testdata/dead_letters.sql"
)

// The statements that are built are those of the golden files, which the tests of plans read.
func TestBuiltStatementsAreTheGoldenOnes(t *testing.T) {
	t.Parallel()
	var enqueues, dead []sqltest.Shape
	for _, s := range postgres.Enqueues() {
		enqueues = append(enqueues, sqltest.Shape{Name: s.Name, Query: s.Query})
	}
	for _, s := range deadLetters() {
		dead = append(dead, sqltest.Shape{Name: s.name, Query: s.query})
	}
	if err := sqltest.Golden(enqueueShapes, enqueues); err != nil {
		t.Error(err)
	}
	if err := sqltest.Golden(deadShapes, dead); err != nil {
		t.Error(err)
	}
}

// The tests of plans explain each file of queries.
func TestEachQueryHasATestOfItsPlan(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(os.DirFS("queries"), "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	statements := postgres.Statements()
	for _, file := range files {
		s, ok := statements[strings.TrimSuffix(file, ".sql")]
		if text := sqlstore.ReadQuery(os.DirFS("queries"), file); !ok || s.Query != text {
			t.Errorf("%s is not explained as it is:\n%s", file, s.Query)
		}
	}
	if len(statements) != len(files) {
		t.Errorf("%d statements are explained, of %d files", len(statements), len(files))
	}
}

// A statement that goes by the places of rows differs from the one that does not in nothing else.
func TestPlacedEndsDifferInThePlaceAlone(t *testing.T) {
	t.Parallel()
	without := strings.NewReplacer(", $9::tid[]", "", ", $17::tid[]", "", ", place", "", " and q.ctid = i.place", "")
	anywhere, placed := postgres.Ends()
	for i := range anywhere {
		if got := without.Replace(placed[i]); got != anywhere[i] || got == placed[i] {
			t.Errorf("without the place it is\n%s\nand not\n%s", got, anywhere[i])
		}
	}
}

// A claim reads the columns that the scanner of deliveries expects.
func TestClaimReadsTheContent(t *testing.T) {
	t.Parallel()
	words := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if !strings.Contains(words(postgres.Claim()), " c.place, "+words(sqlstore.ContentColumns)+" from claimed") {
		t.Errorf("claim.sql does not end its columns with %s", sqlstore.ContentColumns)
	}
}

// deadLetter is a shape of a statement on dead letters, and the index by which it must find them;
// "" is any.
type deadLetter struct {
	name, index, query string
	args               []any
}

const (
	deadDelivery    = "00000000-0000-7000-8000-000000000100"
	deadDestination = "00000000-0000-7000-9000-000000000001"
)

func deadLetters() (all []deadLetter) {
	const (
		primary     = "delivery_dead_letters_pkey"
		destination = "delivery_dead_letters_destination"
	)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	last := sqlstore.Key{Delivery: deadDelivery, N: 1}
	d := postgres.Dialect{}
	filters := []struct {
		name, index string
		f           sqlstore.DeadFilter
	}{
		{"all", primary, sqlstore.DeadFilter{}},
		{"one destination", destination, sqlstore.DeadFilter{Destination: deadDestination}},
		{"all criteria", destination, sqlstore.DeadFilter{
			Destination: deadDestination, Topic: "x", Reasons: []queue.Reason{queue.Permanent},
			From: at, Before: at.Add(time.Hour), Until: at,
		}},
	}
	pages := []struct {
		name string
		p    sqlstore.DeadPage
	}{
		{"first", sqlstore.DeadPage{Descending: true, Limit: 101}},
		{"next", sqlstore.DeadPage{Descending: true, Limit: 101, After: &last}},
		{"to change", sqlstore.DeadPage{Limit: 500, Lock: true}},
		{"to change, next", sqlstore.DeadPage{Limit: 500, Lock: true, After: &last}},
	}
	for _, filter := range filters {
		for _, page := range pages {
			query, args := sqlstore.DeadQuery(d, "acme", filter.f, page.p)
			all = append(all, deadLetter{filter.name + ", " + page.name, filter.index, query, args})
		}
		query, args := sqlstore.PurgeQuery(d, "acme", filter.f, &last, last)
		all = append(all, deadLetter{filter.name + ", purge", "", query, args})
	}
	query, args := sqlstore.DeadQuery(d, "acme",
		sqlstore.DeadFilter{Delivery: deadDelivery}, sqlstore.DeadPage{Limit: 100, Lock: true})
	return append(all, deadLetter{"of a delivery", primary, query, args})
}

// shape returns the text that a golden file has for a statement.
func shape(t *testing.T, path, name string) string {
	t.Helper()
	shapes, err := sqltest.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(shapes, func(s sqltest.Shape) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("%s has no %q", path, name)
	}
	return shapes[i].Query
}
