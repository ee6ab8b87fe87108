package sqlite

import (
	"strings"
	"time"
)

// Rebind turns $1 into ?1.
func (Dialect) Rebind(query string) string { return strings.ReplaceAll(query, "$", "?") }

// Time returns microseconds since 1970.
func (Dialect) Time(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// At returns the parameter: times are numbers, and the caller has to give one.
func (Dialect) At(parameter string) string { return parameter }

// JSON returns raw as text.
func (Dialect) JSON(raw []byte) any {
	if len(raw) == 0 {
		return nil
	}
	return string(raw)
}

// Locking is empty: there is one writer.
func (Dialect) Locking(string) string { return "" }

// Sharing is empty: there is one writer.
func (Dialect) Sharing() string { return "" }

// SkipLocked is empty: there is one writer.
func (Dialect) SkipLocked() string { return "" }

// By names the index: without statistics, SQLite takes a prefix of a primary key to be as good.
func (Dialect) By(index string) string { return ` indexed by ` + index }
