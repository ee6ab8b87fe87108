package postgres

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// array writes a PostgreSQL array literal (documentation, section 8.15.2). As text it passes through every driver, and
// the library needs none.
type array []byte

// newArray returns an array that has room for n values of so many bytes.
func newArray(n, size int) array { return make(array, 0, n*(size+1)+2) }

func (a *array) next() {
	if len(*a) == 0 {
		*a = append(*a, '{')
	} else {
		*a = append(*a, ',')
	}
}

func (a *array) null() {
	a.next()
	*a = append(*a, "NULL"...)
}

func (a *array) int(v int64) {
	a.next()
	*a = strconv.AppendInt(*a, v, 10)
}

func (a *array) float(v float64) {
	a.next()
	*a = strconv.AppendFloat(*a, v, 'g', 8, 64)
}

func (a *array) bool(v bool) {
	a.next()
	*a = strconv.AppendBool(*a, v)
}

// id writes a text that needs no quotes, a UUID; "" as null.
func (a *array) id(v string) {
	if v == "" {
		a.null()
		return
	}
	a.next()
	*a = append(*a, v...)
}

var quote = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func (a *array) text(v string) {
	a.next()
	if strings.ContainsAny(v, `\"`) {
		v = quote.Replace(v)
	}
	*a = append(*a, '"')
	*a = append(*a, v...)
	*a = append(*a, '"')
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
	*a = append(*a, `"\\x`...)
	*a = hex.AppendEncode(*a, v)
	*a = append(*a, '"')
}

// time writes a timestamptz, zero as null.
func (a *array) time(v time.Time) {
	if v.IsZero() {
		a.null()
		return
	}
	a.next()
	*a = append(*a, '"')
	*a = v.UTC().AppendFormat(*a, "2006-01-02 15:04:05.999999")
	*a = append(*a, `+00"`...)
}

func (a array) String() string {
	if len(a) == 0 {
		return "{}"
	}
	return string(append(a, '}'))
}
