package sqlstore_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqltest"
)

// statement is SQL that was found: as a string expression, with its constants filled in and "…"
// for what is not constant, or in an .sql file. unit is the function or constant, behind the name
// of its package, or the file.
type statement struct {
	unit, text string
	whole      bool // it is what runs, and not perhaps a part of that
}

// internal is the folder whose packages have statements.
const internal = ".."

// forTests are the packages in internal that only tests use.
var forTests = []string{"dbtest", "queuetest", "sqltest", "systemtest", "testkit"}

// inSource finds the statements of all Go files in internal but those of tests.
func inSource(t *testing.T) (all []statement) {
	t.Helper()
	var files []*ast.File
	err := filepath.WalkDir(internal, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains(forTests, d.Name()):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			files = append(files, parse(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]ast.Expr{}
	for _, file := range files {
		for _, decl := range file.Decls {
			if g, ok := decl.(*ast.GenDecl); ok && g.Tok == token.CONST {
				for _, spec := range g.Specs {
					v := spec.(*ast.ValueSpec)
					for i, name := range v.Names {
						if i < len(v.Values) {
							constants[file.Name.Name+"."+name.Name] = v.Values[i]
						}
					}
				}
			}
		}
	}
	for _, file := range files {
		all = append(all, inFile(file, constants)...)
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

// inFile finds the statements of a Go file. They are the largest string expressions that mention a
// table, and conditions, which begin with where and are given to another function. The arguments of
// all calls of a method named text in a function are one statement. constants are named with their
// packages.
func inFile(file *ast.File, constants map[string]ast.Expr) (all []statement) {
	of := file.Name.Name
	note := func(unit string, n ast.Node) {
		unit = of + "." + unit
		var built strings.Builder
		ast.Inspect(n, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "text" {
					for _, arg := range call.Args {
						built.WriteString(text(arg, of, constants))
					}
					return false
				}
			}
			e, ok := n.(ast.Expr)
			if !ok || !isText(e) {
				return true
			}
			s := text(e, of, constants)
			if table.MatchString(s) || strings.HasPrefix(strings.TrimSpace(s), "where ") {
				all = append(all, statement{unit: unit, text: s})
			}
			return false
		})
		if table.MatchString(built.String()) {
			all = append(all, statement{unit: unit, text: built.String()})
		}
	}
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			note(nameOf(d), d)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok {
					note(v.Names[0].Name, v)
				}
			}
		}
	}
	return all
}

// nameOf returns the name of a function, behind that of its receiver.
func nameOf(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	of := f.Recv.List[0].Type
	if p, ok := of.(*ast.StarExpr); ok {
		of = p.X
	}
	switch generic := of.(type) {
	case *ast.IndexExpr:
		of = generic.X
	case *ast.IndexListExpr:
		of = generic.X
	}
	return of.(*ast.Ident).Name + "." + f.Name.Name
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

// text writes out an expression of a package.
func text(e ast.Expr, of string, constants map[string]ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return s
		}
	case *ast.ParenExpr:
		return text(e.X, of, constants)
	case *ast.BinaryExpr:
		return text(e.X, of, constants) + text(e.Y, of, constants)
	case *ast.Ident:
		if c := constants[of+"."+e.Name]; c != nil {
			return text(c, of, constants)
		}
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok && constants[x.Name+"."+e.Sel.Name] != nil {
			return text(constants[x.Name+"."+e.Sel.Name], x.Name, constants)
		}
	case *ast.CallExpr: // given(keyed, ` or d.keyed`)
		var b strings.Builder
		for _, arg := range e.Args {
			b.WriteString(text(arg, of, constants))
		}
		if b.Len() > 0 {
			return b.String()
		}
	}
	return "…"
}

// queryFiles lists the .sql files in internal: the queries that are embedded, and the shapes of
// those that are built. Migrations are left out.
func queryFiles(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(internal, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "migrations" {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".sql" {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// embedded reports whether an .sql file is a query that runs as it is.
func embedded(path string) bool { return filepath.Base(filepath.Dir(path)) == "queries" }

// inQueries finds the statements of all .sql files in internal.
func inQueries(t *testing.T) (all []statement) {
	t.Helper()
	for _, path := range queryFiles(t) {
		shapes, err := sqltest.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if embedded(path) {
			query := sqlstore.ReadQuery(os.DirFS(filepath.Dir(path)), filepath.Base(path))
			shapes = append(shapes, sqltest.Shape{Query: query})
		}
		unit, err := filepath.Rel(internal, path)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range shapes {
			all = append(all, statement{filepath.ToSlash(unit), s.Query, true})
		}
	}
	return all
}
