package postgres

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// array is a PostgreSQL array literal as it is written (documentation, section 8.15.2). As text it
// passes through every driver, and the library links none. If it holds nothing but nulls it is
// written empty: unnest fills it up with nulls to the length of the others.
type array struct {
	b     []byte
	nulls int // at its beginning
}

// newArray returns an array with room for n values of size bytes.
func newArray(n, size int) array { return array{b: make([]byte, 0, n*(size+1)+2)} }

// empty reports whether the array holds nothing but nulls.
func (a *array) empty() bool { return len(a.b) == 0 }

func (a *array) next() {
	if len(a.b) > 0 {
		a.b = append(a.b, ',')
		return
	}
	a.b = append(a.b, '{')
	for range a.nulls {
		a.b = append(a.b, "NULL,"...)
	}
}

func (a *array) null() {
	if len(a.b) == 0 {
		a.nulls++
		return
	}
	a.b = append(a.b, ",NULL"...)
}

func (a *array) int(v int64) {
	a.next()
	a.b = strconv.AppendInt(a.b, v, 10)
}

func (a *array) float(v float64) {
	a.next()
	a.b = strconv.AppendFloat(a.b, v, 'g', 8, 64)
}

// flag writes a boolean, false as null.
func (a *array) flag(v bool) {
	if !v {
		a.null()
		return
	}
	a.next()
	a.b = append(a.b, 't')
}

// id writes a UUID, which needs no quotes; "" as null.
func (a *array) id(v string) {
	if v == "" {
		a.null()
		return
	}
	a.next()
	a.b = append(a.b, v...)
}

var quote = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func (a *array) text(v string) {
	a.next()
	if strings.ContainsAny(v, `\"`) {
		v = quote.Replace(v)
	}
	a.b = append(a.b, '"')
	a.b = append(a.b, v...)
	a.b = append(a.b, '"')
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
	a.b = append(a.b, `"\\x`...)
	a.b = hex.AppendEncode(a.b, v)
	a.b = append(a.b, '"')
}

// time writes a timestamptz, zero as null.
func (a *array) time(v time.Time) {
	if v.IsZero() {
		a.null()
		return
	}
	a.next()
	a.b = append(a.b, '"')
	a.b = v.UTC().AppendFormat(a.b, "2006-01-02 15:04:05.999999")
	a.b = append(a.b, `+00"`...)
}

func (a array) String() string {
	if len(a.b) == 0 {
		return "{}"
	}
	return string(append(a.b, '}'))
}
