package dbtest

import (
	"net/url"
	"path/filepath"
	"testing"
)

// SQLite returns the DSN of a new database in t.TempDir, for the driver "sqlite"
// of modernc.org/sqlite. Its journal is a write-ahead log, writers wait up to
// 10 s for each other, and foreign keys are enforced. Transactions begin
// deferred, as for a host that sets nothing: a transaction that reads before it
// writes can get SQLITE_BUSY at once. The test must close the database before it
// ends, or the directory cannot be removed.
func SQLite(t testing.TB) string {
	t.Helper()
	return sqliteDSN(filepath.Join(t.TempDir(), "test.db"))
}

func sqliteDSN(path string) string {
	u := url.URL{Path: filepath.ToSlash(path)}
	return "file:" + u.EscapedPath() +
		"?_pragma=busy_timeout(10000)" +
		"&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(NORMAL)" +
		"&_pragma=foreign_keys(1)"
}
