package sqlstore

import "time"

// Syntax is how a database writes what statements have in common: parameters, and the clauses that
// lock rows. Statements that are the same for all databases are written with $1 placeholders and
// take the rest from here. Its methods do not touch the database.
type Syntax interface {
	// Rebind turns $1 placeholders into the database's own.
	Rebind(query string) string
	// Time returns t as a parameter; the zero time is null.
	Time(t time.Time) any
	// At returns the expression of a time parameter where nothing else gives its type. Where the
	// database has a clock, a null parameter is the database's now.
	At(parameter string) string
	// JSON returns a JSON document as a parameter; an empty one is null.
	JSON(raw []byte) any
	// Locking ends a query that locks the rows of one of its tables, named by its alias. It is ""
	// where writers exclude each other.
	Locking(table string) string
	// Sharing ends a query of one table. Until the transaction ends its rows can be read and
	// changed by others, but neither removed nor locked by SkipLocked.
	Sharing() string
	// SkipLocked ends a query of one table that locks its rows and skips those that another
	// transaction has locked.
	SkipLocked() string
	// By follows a table's alias and names the index to read it by. It is "" where the planner
	// finds the index by itself.
	By(index string) string
}
