// Package dbtest provides databases for tests and benchmarks.
//
// [Postgres] and [PostgresFrom] create a database for each test on the server
// that the environment variable [EnvURL] names. `make test` sets it, by
// running the tests under the command withpg, which starts a throwaway server.
// [SQLite] returns the DSN of a fresh file. [Start] and [Cluster] run a
// PostgreSQL server of their own, for tests that crash it and for benchmarks.
//
// A package that uses [PostgresFrom] ends its TestMain with [Main], which drops
// the templates and looks for leaked goroutines. A killed test process may
// leave databases on a server that continues to run. A later test process drops
// them once they are two days old.
//
// Callers are tests, benchmarks and the commands that run them; the package
// imports nothing of the library.
package dbtest
