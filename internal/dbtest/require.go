package dbtest

import (
	"os"
	"strconv"
	"testing"
)

// Environment variables that say where tests find PostgreSQL.
const (
	// EnvURL names the server: the URL of a database in it (postgres://...)
	// whose user may create and drop databases.
	EnvURL = "DELIVERY_TEST_DATABASE_URL"
	// EnvSkip set to 1 skips tests that need PostgreSQL where EnvURL is not
	// set. It is refused where CI is set.
	EnvSkip = "DELIVERY_TEST_SKIP_POSTGRES"
	// EnvBinaries names the directory of PostgreSQL's server programs
	// (initdb, postgres). Start looks nowhere else when it is set.
	EnvBinaries = "DELIVERY_TEST_POSTGRES_BIN"
)

type verdict int

const (
	proceed verdict = iota
	skip
	refuse
)

// decide says what a test that needs PostgreSQL does, and why if it does not
// proceed. Only the environment decides. A test with a server of its own needs no
// EnvURL.
func decide(getenv func(string) string, ownServer bool) (verdict, string) {
	if !ownServer && getenv(EnvURL) != "" {
		return proceed, ""
	}
	if !truthy(getenv(EnvSkip)) {
		if ownServer {
			return proceed, ""
		}
		return refuse, "dbtest: this test needs PostgreSQL: run `make test`, or run it as " +
			"`go run ./internal/dbtest/withpg -- go test ./...`, or set " + EnvURL +
			" to a server whose user may create databases; " + EnvSkip + "=1 skips such tests"
	}
	if truthy(getenv("CI")) {
		return refuse, "dbtest: " + EnvSkip + " and CI are both set: a CI run must not skip the PostgreSQL tests; " +
			"unset " + EnvSkip + " and run `make test`"
	}
	return skip, "dbtest: SKIPPED, NOT TESTED: " + EnvSkip + " is set, so nothing runs on PostgreSQL"
}

// truthy treats any value except the usual words for no as yes, so that CI=on
// counts.
func truthy(v string) bool {
	if v == "" {
		return false
	}
	b, err := strconv.ParseBool(v)
	return b || err != nil
}

func require(t testing.TB, ownServer bool) {
	t.Helper()
	switch v, why := decide(os.Getenv, ownServer); v {
	case skip:
		t.Skip(why)
	case refuse:
		t.Fatal(why)
	case proceed:
	}
}
