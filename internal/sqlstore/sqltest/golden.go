// Package sqltest keeps the statements that code builds as golden files: an .sql file holds the
// shapes of one statement, each under a line "-- name: ..." and ready to paste into a shell. Only
// tests use it.
package sqltest

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Shape is one form of a statement that code builds.
type Shape struct {
	Name, Query string
}

var update = flag.Bool("update", false, "write the golden files of statements")

// Golden compares the shapes of a statement with those in a file. With the flag -update it writes
// the file instead.
func Golden(path string, shapes []Shape) error {
	var b strings.Builder
	b.WriteString("-- Written by go test -update.\n")
	for _, s := range shapes {
		fmt.Fprintf(&b, "\n-- name: %s\n%s;\n", s.Name, strings.TrimSpace(s.Query))
	}
	if *update {
		return os.WriteFile(path, []byte(b.String()), 0o600)
	}
	stored, err := os.ReadFile(path)
	if err == nil && string(stored) != b.String() {
		err = fmt.Errorf("%s is not what is built now: if that is meant, run the test with -update", path)
	}
	return err
}

var name = regexp.MustCompile(`(?m)^-- name: (.*)$`)

// Read returns the shapes in a file.
func Read(path string) ([]Shape, error) {
	stored, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text := string(stored)
	heads := name.FindAllStringSubmatchIndex(text, -1)
	shapes := make([]Shape, len(heads))
	for i, h := range heads {
		end := len(text)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		query := strings.TrimSuffix(strings.TrimSpace(text[h[1]:end]), ";")
		shapes[i] = Shape{Name: text[h[2]:h[3]], Query: query}
	}
	return shapes, nil
}
