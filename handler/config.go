package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
)

// Func returns a Handler for a function whose config is a C: any struct with JSON tags and,
// optionally, a method Validate() error. It is the short way to a host's own handler.
func Func[C any](deliver func(ctx context.Context, req *Request, config C) (*Result, error)) Handler {
	return function[C]{deliver: deliver}
}

type function[C any] struct {
	Parser[C]
	deliver func(ctx context.Context, req *Request, config C) (*Result, error)
}

func (f function[C]) Deliver(ctx context.Context, req *Request) (*Result, error) {
	config, ok := req.Config.(C)
	if !ok {
		return nil, Fail(Configuration, fmt.Errorf("handler: the config is a %T, not a %T", req.Config, config))
	}
	return f.deliver(ctx, req, config)
}

// Parser is a ConfigParser to embed. It decodes strict JSON into a C and calls C's method
// Validate() error, if it has one.
type Parser[C any] struct{}

// ParseConfig returns a C. It rejects unknown fields, so that a typing error is not silently
// ignored.
func (Parser[C]) ParseConfig(raw json.RawMessage) (any, error) {
	var config C
	if err := Decode(raw, &config); err != nil {
		return nil, err
	}
	if v, ok := any(&config).(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// Decode decodes strict JSON into v. Unknown fields, wrong types and trailing data are field errors
// with the path of the field, never its value, which may be a secret.
func Decode(raw json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return destination.Invalid("", "has data after the JSON object")
		}
		return nil
	}
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	var at *time.ParseError
	switch {
	case errors.As(err, &wrong) && wrong.Type == reflect.TypeFor[destination.Duration]():
		return destination.Invalid(wrong.Field, `is not a duration; expected for example "36h" or "1m30s"`)
	case errors.As(err, &wrong):
		return destination.Invalid(
			wrong.Field, "is a JSON %s where %s belongs", strings.Fields(wrong.Value + " value")[0], kind(wrong),
		)
	case errors.As(err, &at):
		return destination.Invalid("", `has a time that is not in RFC 3339, such as "2026-06-21T10:00:00Z"`)
	case errors.As(err, &syntax):
		return destination.Invalid("", "is not valid JSON, at byte %d", syntax.Offset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return destination.Invalid("", "is not complete JSON")
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return &destination.FieldError{
			Path: strings.Trim(field, `"`), Code: "unknown", Message: "is not a field of this type",
		}
	}
	return destination.Invalid("", "%v", err)
}

func kind(e *json.UnmarshalTypeError) string {
	switch k := e.Type.Kind().String(); {
	case k == "string", k == "bool":
		return "a " + k
	case strings.HasPrefix(k, "int"), strings.HasPrefix(k, "uint"):
		return "a whole number in range"
	case strings.HasPrefix(k, "float"):
		return "a number in range"
	case k == "slice", k == "array":
		return "a list"
	}
	return "an object"
}
