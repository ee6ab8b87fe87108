package postgres

import (
	"time"
)

// Rebind returns query: PostgreSQL itself has $1.
func (Dialect) Rebind(query string) string { return query }

// Time returns t in UTC.
func (Dialect) Time(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC()
}

// At casts to timestamptz; null is now().
func (Dialect) At(parameter string) string { return "coalesce(" + parameter + "::timestamptz, now())" }

// JSON returns raw as text: drivers send bytes as a bytea.
func (Dialect) JSON(raw []byte) any {
	if len(raw) == 0 {
		return nil
	}
	return string(raw)
}

// Locking locks for update.
func (Dialect) Locking(table string) string { return ` for update of ` + table }

// Sharing locks the key, which changes do not wait for.
func (Dialect) Sharing() string { return ` for key share` }

// SkipLocked locks for update.
func (Dialect) SkipLocked() string { return ` for update skip locked` }

// By is empty: dead_plans_test.go shows that the planner finds the index.
func (Dialect) By(string) string { return "" }
