package postgres_test

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/queuestore/postgres"
	"github.com/deliverykit/delivery/internal/queuestore/queuetest"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqltest"
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
	for _, s := range queuetest.AllDeadLetters(postgres.Native{}) {
		dead = append(dead, s.Shape)
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
