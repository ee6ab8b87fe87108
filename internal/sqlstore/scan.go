package sqlstore

import (
	"fmt"
	"strings"
	"time"
)

// Time scans a time of either database. Null is the zero time.
type Time struct{ T *time.Time }

// Scan implements [database/sql.Scanner].
func (t Time) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*t.T = time.Time{}
	case time.Time:
		*t.T = v.UTC()
	case int64:
		*t.T = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("sqlstore: a %T is not a time", v)
	}
	return nil
}

// Text scans a nullable text. Null is "".
type Text struct{ S *string }

// Scan implements [database/sql.Scanner].
func (t Text) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*t.S = ""
	case string:
		*t.S = v
	case []byte:
		*t.S = string(v)
	default:
		return fmt.Errorf("sqlstore: a %T is not a text", v)
	}
	return nil
}

// Null returns s as a parameter, nil for "".
func Null(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// Storable returns s as text that every database takes: invalid UTF-8 and NUL become U+FFFD.
func Storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
