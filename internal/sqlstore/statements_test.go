package sqlstore_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// system lists the functions and constants, and the tables in files, whose rows a statement means
// without saying whose they are, each with the reason.
var system = map[string]string{
	// Parts, whose conditions are statements of their own here.
	"sqlstore.destinationTables":     part,
	"sqlstore.writtenColumns":        part,
	"sqlstore.Tx.SelectDestinations": part,
	"queuestore.deadFrom":            "its first condition is on the organization",
	"queuestore.LaneCounts":          "the condition follows, unless all organizations are meant: Queue of the service itself",
	"queuestore.Sum":                 "the condition follows, unless all organizations are meant: Queue of the service itself",
	"queuestore.addMinutes":          "the columns that a conflict adds to, of a key that has the organization",
	"audit.ownerOfDestination":       "whose a foreign id is, for the security event, and told to nobody else",

	// The queue of all organizations, which the engine works on.
	"queuestore/postgres/queries/ranks.sql: queue":   engine,
	"queuestore/postgres/queries/walk.sql: queue":    engine,
	"queuestore/postgres/queries/claim.sql: queue":   lane,
	"queuestore/postgres/queries/due.sql: queue":     engine,
	"queuestore/postgres/queries/overdue.sql: queue": engine,
	"queuestore/sqlite/queries/ranks.sql: queue":     engine,
	"queuestore/sqlite/queries/walk.sql: queue":      engine,
	"queuestore/sqlite/queries/claim.sql: queue":     lane,
	"queuestore/sqlite/queries/lease.sql: queue":     lane,
	"queuestore/sqlite/queries/due.sql: queue":       engine,
	"queuestore/sqlite/queries/overdue.sql: queue":   engine,
	"queuestore.Leased":                              engine,
	"queuestore.Flagged":                             engine,
	"queuestore.LockExpired":                         engine,
	"queuestore.grant":                               engine,
	"queuestore.Prolong":                             engine,
	"queuestore.Drop":                                engine,
	"sqlite.Next":                                    "numbers of the queue, which all organizations share",
	"queuestore.NextDue":                             engine,
	"sqlstore.Tx.DestinationsByNo":                   engine,
	"maintenance.writtenBefore":                      lane,
	"queuestore.Ahead":                               lane,
	"queuestore.CatchingUp":                          lane,
	"postgres.Native.GateQuery":                      lane,
	"sqlite.Native.GateQuery":                        lane,
	"queuestore.TakeTokens":                          lane,
	"queuestore.saveHealth":                          lane,
	"queuestore.HalfOpen":                            lane,
	"queuestore.CaughtUp":                            lane,

	// Maintenance of all organizations.
	"maintenance.leaseChecks":          maintenance,
	"maintenance.scheduleChecks":       maintenance,
	"maintenance.drainingDestinations": maintenance,
	"maintenance.destinationsOfType":   maintenance,
	"maintenance.sealedByOthers":       maintenance,
	"configs.CountSealed":              "counts for KeysInUse of the service itself",
	"spool.Condemn":                    maintenance,
	"spool.KnownKeys":                  maintenance,
	"maintenance.nextOrganization":     maintenance,

	// Of the service and its processes, without an organization.
	"spool.installation":       service,
	"maintenance.leaseJob":     service,
	"maintenance.finishJob":    service,
	"queuestore.Present":       service,
	"queuestore.Workers":       service,
	"queuestore.ForgetWorkers": service,
}

const (
	part        = "a part: the conditions that follow it are statements here too"
	engine      = "the engine works on what is due of all organizations"
	lane        = "of a destination's number, which the engine has from an item of it and no caller gives"
	maintenance = "Maintain works for all organizations, and returns counts"
	service     = "the table has no organization"
)

var (
	// An organization is compared, or given to an inserted row.
	compared = regexp.MustCompile(`organization_id\s*(=|<>|in\b)|=\s*([a-z]+\.)?organization_id|` +
		`\([a-z_., ]*\borganization_id\b[a-z_., ]*\)\s*(=|in\b|>|<)`)
	inserted = regexp.MustCompile(`insert\s+(or replace )?into delivery_[a-z_]+( as [a-z]+)?\s*\([^)]*\borganization_id\b`)
	// The row was found by another part of the statement, which is looked at by itself.
	placed = regexp.MustCompile(`\bctid = any\(`)
	verb   = regexp.MustCompile(`insert\s+(or replace )?into\s+$`)
)

// unnamed returns what of a statement does not name the organization whose rows it means: the unit
// or, of a statement that is known as a whole, the unit with the tables of those mentions that do
// not.
func (s statement) unnamed() (units []string) {
	if !s.whole {
		if !compared.MatchString(s.text) && !inserted.MatchString(s.text) {
			units = append(units, s.unit)
		}
		return units
	}
	mentions := table.FindAllStringSubmatchIndex(s.text, -1)
	for i, m := range mentions {
		begin, end := m[0], len(s.text)
		if i+1 < len(mentions) {
			end = mentions[i+1][0]
		}
		if v := verb.FindStringIndex(s.text[:begin]); v != nil {
			begin = v[0]
		}
		part := s.text[begin:end]
		if !compared.MatchString(part) && !inserted.MatchString(part) && !placed.MatchString(part) {
			units = append(units, s.unit+": "+s.text[m[2]:m[3]])
		}
	}
	return units
}

// Every statement names the organization whose rows it reads or writes, unless it works for the
// service as a whole.
func TestStatementsNameTheOrganization(t *testing.T) {
	t.Parallel()
	source, queries := inSource(t), inQueries(t)
	if len(source) < 100 || len(queries) < 60 {
		t.Fatalf("only %d and %d statements were found", len(source), len(queries))
	}
	used := map[string]bool{}
	for _, s := range append(source, queries...) {
		for _, unit := range s.unnamed() {
			used[unit] = true
			if system[unit] == "" {
				t.Errorf("%s names no organization: %s", unit, s.text)
			}
		}
	}
	for unit := range system {
		if !used[unit] {
			t.Errorf("%s is listed as a system statement, and is none", unit)
		}
	}
}

// Statements on the service's tables stand in internal, and not in the engine, which works with the
// store's.
func TestStatementsAreInTheirPlace(t *testing.T) {
	t.Parallel()
	root := filepath.Join(internal, "..")
	elsewhere := []string{".git", "testdata", "node_modules", "bench", "test"}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			inInternal := filepath.Dir(path) == filepath.Join(root, "internal")
			if slices.Contains(elsewhere, d.Name()) || inInternal && d.Name() != "engine" {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) == ".sql" {
			text, err := fs.ReadFile(os.DirFS(filepath.Dir(path)), d.Name())
			if table.Match(text) {
				t.Errorf("%s has a statement", path)
			}
			return err
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			for _, s := range inFile(parse(t, path), nil) {
				t.Errorf("%s: %s has a statement: %s", path, s.unit, s.text)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The comment at the head of a query lists its parameters, which are numbered without a gap.
func TestQueriesListTheirParameters(t *testing.T) {
	t.Parallel()
	listed := regexp.MustCompile(`(?m)^-- [$?](\d+) +[a-z]+(\[\])? +\S`)
	used := regexp.MustCompile(`[$?](\d+)`)
	numbers := func(r *regexp.Regexp, text string) (all []string) {
		for _, m := range r.FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	files := slices.DeleteFunc(queryFiles(t), func(path string) bool { return !embedded(path) })
	if len(files) < 20 {
		t.Fatalf("only %d files were found: %s", len(files), files)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		head, body := string(text), ""
		if i := regexp.MustCompile(`(?m)^[^-]`).FindStringIndex(head); i != nil {
			head, body = head[:i[0]], head[i[0]:]
		}
		if got, want := numbers(listed, head), numbers(used, body); !slices.Equal(got, want) {
			t.Errorf("%s lists the parameters %s and has %s", file, got, want)
		}
	}
}
