package postgres

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// array writes a PostgreSQL array literal (documentation, section 8.15.2). As text it passes through every driver, and
// the library needs none.
type array struct {
	b strings.Builder
}

func (a *array) next() {
	if a.b.Len() == 0 {
		a.b.WriteByte('{')
	} else {
		a.b.WriteByte(',')
	}
}

func (a *array) null() {
	a.next()
	a.b.WriteString("NULL")
}

func (a *array) int(v int64) {
	a.next()
	a.b.WriteString(strconv.FormatInt(v, 10))
}

func (a *array) bool(v bool) {
	a.next()
	a.b.WriteString(strconv.FormatBool(v))
}

// id writes a text that needs no quotes: a UUID.
func (a *array) id(v string) {
	a.next()
	a.b.WriteString(v)
}

var quote = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func (a *array) text(v string) {
	a.next()
	a.b.WriteByte('"')
	_, _ = quote.WriteString(&a.b, v)
	a.b.WriteByte('"')
}

// opt writes a text, "" as null.
func (a *array) opt(v string) {
	if v == "" {
		a.null()
		return
	}
	a.text(v)
}

// bytes writes a bytea, nil as null.
func (a *array) bytes(v []byte) {
	if v == nil {
		a.null()
		return
	}
	a.next()
	a.b.WriteString(`"\\x`)
	a.b.Grow(hex.EncodedLen(len(v)) + 1)
	_, _ = hex.NewEncoder(&a.b).Write(v)
	a.b.WriteByte('"')
}

// time writes a timestamptz, zero as null.
func (a *array) time(v time.Time) {
	if v.IsZero() {
		a.null()
		return
	}
	a.next()
	a.b.WriteByte('"')
	a.b.WriteString(v.UTC().Format("2006-01-02 15:04:05.999999"))
	a.b.WriteString(`+00"`)
}

func (a *array) String() string {
	if a.b.Len() == 0 {
		return "{}"
	}
	return a.b.String() + "}"
}
