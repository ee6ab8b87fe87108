package sqlstore

import (
	"io/fs"
	"strings"
)

// ReadQuery returns the statement of an embedded .sql file: what follows the comment at its head,
// without the semicolon at its end. The comment is for people and is not sent to the database. It
// panics if the file is missing, which only a build can cause.
func ReadQuery(fsys fs.FS, name string) string {
	b, err := fs.ReadFile(fsys, name)
	if err != nil {
		panic(err)
	}
	text := string(b)
	for strings.HasPrefix(text, "--") {
		_, text, _ = strings.Cut(text, "\n")
	}
	return strings.TrimSuffix(strings.TrimSpace(text), ";")
}
