// Package dbtest gives tests and benchmarks their databases.
//
// [Postgres] and [PostgresFrom] create a database for each test on the server
// that the environment variable [EnvURL] names. `make test` sets it, by
// running the tests under the command withpg, which starts a throwaway server.
// [SQLite] gives a fresh file. [Start] and [Cluster] run a PostgreSQL server
// of their own, for tests that crash it and for benchmarks.
//
// A package that uses [PostgresFrom] ends its TestMain with [Main], which drops
// the templates and looks for leaked goroutines. Databases that a killed test
// process left on a server that lives on are dropped by a later test process,
// once they are two days old.
//
// Callers are tests, benchmarks and the commands that run them; the package
// imports nothing of the library.
package dbtest
