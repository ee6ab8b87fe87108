package sqlstore_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// system lists the functions and constants whose statements do not say whose rows they mean, each with the reason.
var system = map[string]string{
	// Parts, whose conditions are statements of their own here.
	"destinationTables":     part,
	"writtenColumns":        part,
	"Tx.destinations":       part,
	"deadFrom":              "its first condition is on the organization",
	"Tx.LaneCounts":         "the condition follows, unless all organizations are meant: Queue of the service itself",
	"Tx.Sum":                "the condition follows, unless all organizations are meant: Queue of the service itself",
	"Tx.addMinutes":         "the columns that a conflict adds to, of a key that has the organization",
	"Tx.OwnerOfDestination": "whose a foreign id is, for the security event, and told to nobody else",

	// The queue of all organizations, which the engine works on.
	"postgres.ranks":             queue,
	"postgres.walk":              queue,
	"postgres.due":               queue,
	"Leased":                     queue,
	"postgres.overdue":           queue,
	"sqlite.Dialect.Ranks":       queue,
	"sqlite.Dialect.Walk":        queue,
	"sqlite.Dialect.Due":         queue,
	"Tx.Flagged":                 queue,
	"Tx.Expired":                 queue,
	"Tx.grant":                   queue,
	"Tx.Prolong":                 queue,
	"Tx.Drop":                    queue,
	"sqlite.Dialect.Overdue":     queue,
	"sqlite.next":                "numbers of the queue, which all organizations share",
	"Tx.NextDue":                 queue,
	"Tx.DestinationsByNo":        queue,
	"Tx.WrittenBefore":           lane,
	"sqlite.oldest":              lane,
	"Tx.Ahead":                   lane,
	"Tx.Draining":                lane,
	"postgres.Dialect.GateQuery": lane,
	"sqlite.Dialect.GateQuery":   lane,
	"Tx.TakeTokens":              lane,
	"Tx.saveHealth":              lane,
	"Tx.HalfOpen":                lane,
	"Tx.Drained":                 lane,

	// Maintenance of all organizations.
	"Tx.LeaseChecks":          maintenance,
	"Tx.ScheduleChecks":       maintenance,
	"Tx.DrainingDestinations": maintenance,
	"Tx.DestinationsOfType":   maintenance,
	"Tx.SealedByOthers":       maintenance,
	"Tx.CountSealed":          "counts for KeysInUse of the service itself",
	"Tx.CondemnPayloads":      maintenance,
	"Tx.KnownKeys":            maintenance,
	"Tx.NextOrganization":     maintenance,

	// Of the service and its processes, without an organization.
	"Tx.Installation":  service,
	"Tx.LeaseJob":      service,
	"Tx.FinishJob":     service,
	"Tx.Present":       service,
	"Tx.Workers":       service,
	"Tx.ForgetWorkers": service,
}

const (
	part        = "a part: the conditions that follow it are statements here too"
	queue       = "the engine works on what is due of all organizations"
	lane        = "of a destination's number, which the engine has from an item of it and no caller gives"
	maintenance = "Maintain works for all organizations, and returns counts"
	service     = "the table has no organization"
)

// statement is a string expression that holds SQL, with its constants filled in and "…" for what is not constant.
type statement struct{ unit, text string }

var (
	table = regexp.MustCompile(`\bdelivery_(destinations|security_events|checks|gates|organizations|health|minutes|usage|payloads|payload_chunks|` +
		`deliveries|idempotency|queue|leases|attempts|dead_letters|written|checkpoints|jobs|workers|installation|sequence)\b`)
	// An organization is compared, or given to an inserted row.
	compared = regexp.MustCompile(`organization_id\s*(=|<>|in\b)|\([a-z_., ]*\borganization_id\b[a-z_., ]*\)\s*(=|in\b|>|<)|=\s*([a-z]+\.)?organization_id`)
	inserted = regexp.MustCompile(`insert into delivery_[a-z_]+( as [a-z]+)?\s*\([^)]*\borganization_id\b`)
)

func (s statement) named() bool { return compared.MatchString(s.text) || inserted.MatchString(s.text) }

// Every statement names the organization whose rows it reads or writes, unless it works for the service as a whole.
func TestStatementsNameTheOrganization(t *testing.T) {
	t.Parallel()
	all := statements(t, ".")
	if len(all) < 100 {
		t.Fatalf("only %d statements were found", len(all))
	}
	used := map[string]bool{}
	for _, s := range all {
		if s.named() {
			continue
		}
		used[s.unit] = true
		if system[s.unit] == "" {
			t.Errorf("%s names no organization: %s", s.unit, s.text)
		}
	}
	for unit := range system {
		if !used[unit] {
			t.Errorf("%s is listed as a system statement, and is none", unit)
		}
	}
}

// No package but those of the store has SQL of the service's tables.
func TestStatementsAreInTheStore(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", "testdata", "node_modules", "bench", "test"}, d.Name()) || path == filepath.Join(root, "internal", "sqlstore") {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && !strings.Contains(path, "dbtest") {
			for _, s := range inFile(t, path, nil) {
				t.Errorf("%s: %s has a statement: %s", path, s.unit, s.text)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func statements(t *testing.T, root string) (all []statement) {
	t.Helper()
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]ast.Expr{}
	for _, path := range files {
		for _, decl := range parse(t, path).Decls {
			if g, ok := decl.(*ast.GenDecl); ok && g.Tok == token.CONST {
				for _, spec := range g.Specs {
					v := spec.(*ast.ValueSpec)
					for i, name := range v.Names {
						if i < len(v.Values) {
							constants[name.Name] = v.Values[i]
						}
					}
				}
			}
		}
	}
	for _, path := range files {
		all = append(all, inFile(t, path, constants)...)
	}
	return all
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// inFile finds the statements of a file: the largest string expressions that mention a table, and conditions, which begin
// with where and are given to another function. What a function puts together
// by calls of a method named text is one statement.
func inFile(t *testing.T, path string, constants map[string]ast.Expr) (all []statement) {
	t.Helper()
	note := func(unit string, n ast.Node) {
		var built strings.Builder
		ast.Inspect(n, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "text" {
					for _, arg := range call.Args {
						built.WriteString(text(arg, constants))
					}
					return false
				}
			}
			e, ok := n.(ast.Expr)
			if !ok || !isText(e) {
				return true
			}
			if s := text(e, constants); table.MatchString(s) || strings.HasPrefix(strings.TrimSpace(s), "where ") {
				all = append(all, statement{unit, s})
			}
			return false
		})
		if table.MatchString(built.String()) {
			all = append(all, statement{unit, built.String()})
		}
	}
	for _, decl := range parse(t, path).Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			unit := d.Name.Name
			if d.Recv != nil {
				of := d.Recv.List[0].Type
				if p, ok := of.(*ast.StarExpr); ok {
					of = p.X
				}
				switch generic := of.(type) {
				case *ast.IndexExpr:
					of = generic.X
				case *ast.IndexListExpr:
					of = generic.X
				}
				unit = of.(*ast.Ident).Name + "." + unit
			}
			if dir := filepath.Base(filepath.Dir(path)); dir == "postgres" || dir == "sqlite" {
				unit = dir + "." + unit
			}
			note(unit, d)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok {
					unit := v.Names[0].Name
					if dir := filepath.Base(filepath.Dir(path)); dir == "postgres" || dir == "sqlite" {
						unit = dir + "." + unit
					}
					note(unit, v)
				}
			}
		}
	}
	return all
}

// isText reports whether e is a literal string, or a sum with one.
func isText(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.ParenExpr:
		return isText(e.X)
	case *ast.BinaryExpr:
		return e.Op == token.ADD && (isText(e.X) || isText(e.Y))
	}
	return false
}

func text(e ast.Expr, constants map[string]ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return s
		}
	case *ast.ParenExpr:
		return text(e.X, constants)
	case *ast.BinaryExpr:
		return text(e.X, constants) + text(e.Y, constants)
	case *ast.Ident:
		if c := constants[e.Name]; c != nil {
			return text(c, constants)
		}
	case *ast.SelectorExpr:
		if c := constants[e.Sel.Name]; c != nil {
			return text(c, constants)
		}
	case *ast.CallExpr: // given(keyed, ` or d.keyed`)
		var b strings.Builder
		for _, arg := range e.Args {
			b.WriteString(text(arg, constants))
		}
		if b.Len() > 0 {
			return b.String()
		}
	}
	return "…"
}
