package delivery

import (
	"errors"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/deliverykit/delivery/destination"
)

// problems collects everything that is wrong with an input.
type problems struct {
	path string // goes before the path of each field
	errs []error
}

func (p *problems) add(field, format string, args ...any) {
	p.errs = append(p.errs, destination.Invalid(p.path+field, format, args...))
}

// join adds err, whose paths are complete.
func (p *problems) join(err error) { p.errs = append(p.errs, err) }

// text checks a text of one line.
func (p *problems) text(field, value string, limit int) {
	if len(value) > limit {
		p.add(field, "has %d bytes, at most %d are allowed", len(value), limit)
	} else if problem := badText(value); problem != "" {
		p.add(field, "%s", problem)
	}
}

// lines checks a text of several lines.
func (p *problems) lines(field, value string, limit int) {
	p.text(field, strings.NewReplacer("\n", "", "\r", "", "\t", "").Replace(value), limit)
}

// maxYear is the last year that both databases store.
const maxYear = 9998

// date checks that a time can be stored.
func (p *problems) date(field string, at time.Time) {
	if at.Year() > maxYear {
		p.add(field, "the year %d is too far in the future", at.Year())
	}
}

// err returns the problems as one *destination.ValidationError, nil if there are none.
func (p *problems) err(subject string) error {
	return destination.NewValidationError(subject, errors.Join(p.errs...))
}

// badText says what keeps text from being stored in every database, "" if nothing does.
func badText(s string) string {
	switch {
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "contains control characters"
	}
	return ""
}

func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Func, reflect.Interface, reflect.Slice, reflect.Chan:
		return r.IsNil()
	}
	return false
}

func badCursor(from string) error {
	return destination.NewValidationError("list", destination.Invalid("cursor", "is not one that %s returned", from))
}

func stamp(at time.Time) string { return at.UTC().Format(time.RFC3339) }
