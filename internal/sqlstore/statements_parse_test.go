package sqlstore_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqltest"
)

// statement is SQL that was found: as a string expression, with its constants filled in and "…"
// for what is not constant, or in an .sql file. unit is the function, constant or file.
type statement struct {
	unit, text string
	whole      bool // it is what runs, and not perhaps a part of that
}

// inSource finds the statements of all Go files below a folder but those of tests.
func inSource(t *testing.T, root string) (all []statement) {
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

// inFile finds the statements of a Go file. They are the largest string expressions that mention a
// table, and conditions, which begin with where and are given to another function. The arguments of
// all calls of a method named text in a function are one statement.
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
				all = append(all, statement{unit: unit, text: s})
			}
			return false
		})
		if table.MatchString(built.String()) {
			all = append(all, statement{unit: unit, text: built.String()})
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

// inQueries finds the statements of all .sql files below a folder: the queries that are embedded,
// and the shapes of those that are built. Migrations are left out.
func inQueries(t *testing.T, root string) (all []statement) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "migrations":
			return fs.SkipDir
		case filepath.Ext(path) != ".sql":
			return nil
		}
		unit := filepath.ToSlash(path)
		shapes, err := sqltest.Read(path)
		if err != nil {
			return err
		}
		if filepath.Base(filepath.Dir(path)) == "queries" {
			text := sqlstore.ReadQuery(os.DirFS(filepath.Dir(path)), d.Name())
			shapes = append(shapes, sqltest.Shape{Query: text})
		}
		for _, s := range shapes {
			all = append(all, statement{unit, s.Query, true})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
