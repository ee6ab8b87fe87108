package destination

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// FieldError is one faulty field: its path, a code for programs and a message for people.
type FieldError struct {
	Path    string `json:"path"` // "config.headers[0].name"; "" for the whole
	Code    string `json:"code"` // "required", "invalid", "unknown", "conflict"
	Message string `json:"message"`
}

func (e *FieldError) Error() string {
	if e.Path == "" {
		return e.Message
	}
	return e.Path + ": " + e.Message
}

// ValidationError lists every faulty field of a destination, a request or a setting at once.
type ValidationError struct {
	Subject          string // "destination", "request"
	Fields, Warnings []*FieldError
}

func (e *ValidationError) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Error()
	}
	return "delivery: invalid " + e.Subject + ": " + strings.Join(parts, "; ")
}

// Require returns a FieldError if value is the zero value of its type.
func Require[T comparable](path string, value T) error {
	var zero T
	if value == zero {
		return &FieldError{Path: path, Code: "required", Message: "is required"}
	}
	return nil
}

// Match returns a FieldError if value is not empty and does not match re.
func Match(path, value string, re *regexp.Regexp) error {
	if value == "" || re.MatchString(value) {
		return nil
	}
	return Invalid(path, "%q does not match %s", value, re)
}

// Invalid returns a FieldError with a message.
func Invalid(path, format string, args ...any) error {
	return &FieldError{Path: path, Code: "invalid", Message: fmt.Sprintf(format, args...)}
}

// NewValidationError flattens joined and nested errors into the fields of one ValidationError. An
// error that names no field becomes a field without a path. It returns nil for nil.
func NewValidationError(subject string, err error) error {
	if err == nil {
		return nil
	}
	v := &ValidationError{Subject: subject}
	v.add("", err)
	return v
}

// Within puts prefix before the path of every field in err.
func Within(prefix string, err error) error {
	if err == nil {
		return nil
	}
	v := &ValidationError{}
	v.add(prefix, err)
	errs := make([]error, len(v.Fields))
	for i, f := range v.Fields {
		errs[i] = f
	}
	return errors.Join(errs...)
}

func (e *ValidationError) add(prefix string, err error) {
	switch err := err.(type) { //nolint:errorlint // this walks the tree itself, one node at a time
	case *FieldError:
		f := *err
		f.Path = strings.TrimSuffix(join(prefix, f.Path), ".")
		e.Fields = append(e.Fields, &f)
	case *ValidationError:
		for _, f := range err.Fields {
			e.add(prefix, f)
		}
		e.Warnings = append(e.Warnings, err.Warnings...)
	case interface{ Unwrap() []error }:
		for _, inner := range err.Unwrap() {
			e.add(prefix, inner)
		}
	default:
		var inner *ValidationError
		if errors.As(err, &inner) {
			e.add(prefix, inner)
			return
		}
		e.Fields = append(e.Fields, &FieldError{Path: prefix, Code: "invalid", Message: err.Error()})
	}
}
