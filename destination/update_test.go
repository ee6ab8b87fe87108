package destination_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/retry"
)

func TestFillRedacted(t *testing.T) {
	t.Parallel()
	const r = `"[redacted]"`
	for name, c := range map[string]struct{ update, stored, want, path string }{
		"nothing redacted":  {update: `{"a":1}`, stored: `{"a":2,"b":3}`, want: `{"a":1}`},
		"kept":              {update: `{"a":` + r + `,"b":2}`, stored: `{"a":"s","b":1}`, want: `{"a":"s","b":2}`},
		"replaced":          {update: `{"a":"t"}`, stored: `{"a":"s"}`, want: `{"a":"t"}`},
		"nested":            {update: `{"a":{"b":[{"c":` + r + `}]}}`, stored: `{"a":{"b":[{"c":"s"}]}}`, want: `{"a":{"b":[{"c":"s"}]}}`},
		"list":              {update: `{"a":["new",` + r + `]}`, stored: `{"a":["x","y"]}`, want: `{"a":["new","y"]}`},
		"list has grown":    {update: `{"a":["new",` + r + `]}`, stored: `{"a":["x"]}`, path: "a[1]"},
		"nothing stored":    {update: `{"a":{"b":` + r + `}}`, stored: `{}`, path: "a.b"},
		"null stored":       {update: `{"a":` + r + `}`, stored: `{"a":null}`, path: "a"},
		"something else":    {update: `{"a":` + r + `}`, stored: `{"a":{"b":"s"}}`, path: "a"},
		"big numbers":       {update: `{"a":12345678901234567890}`, stored: `{}`, want: `{"a":12345678901234567890}`},
		"no partial match":  {update: `{"a":"x[redacted]"}`, stored: `{"a":"s"}`, want: `{"a":"x[redacted]"}`},
		"stored is no JSON": {update: `{}`, stored: `{`, path: "?"},
		"update is no JSON": {update: `{`, stored: `{}`, path: "?"},
	} {
		got, err := destination.FillRedacted(json.RawMessage(c.update), json.RawMessage(c.stored))
		var field *destination.FieldError
		switch {
		case c.path == "":
			if err != nil || string(got) != c.want {
				t.Errorf("%s: %s, %v; want %s", name, got, err, c.want)
			}
		case c.path == "?":
			if err == nil {
				t.Errorf("%s: %s", name, got)
			}
		case !errors.As(err, &field) || field.Path != c.path:
			t.Errorf("%s: %v, want a fault at %s", name, err, c.path)
		}
	}
}

// RFC 7396, appendix A, as far as a patch is an object.
func TestMergePatch(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		// Section 3.
		{`{"a":"b","c":{"d":"e","f":"g"}}`, `{"a":"z","c":{"f":null}}`, `{"a":"z","c":{"d":"e"}}`},
		{`{"n":12345678901234567890}`, `{}`, `{"n":12345678901234567890}`},
	} {
		var patch map[string]any
		if err := json.Unmarshal([]byte(c[1]), &patch); err != nil {
			t.Fatal(err)
		}
		if got, err := destination.MergePatch(json.RawMessage(c[0]), patch); err != nil || string(got) != c[2] {
			t.Errorf("%s with %s: %s, %v; want %s", c[0], c[1], got, err, c[2])
		}
	}
	got, err := destination.MergePatch(json.RawMessage(`{"a":1}`), map[string]any{"auth": map[string]any{"token": destination.NewSecret("s")}})
	if err != nil || string(got) != `{"a":1,"auth":{"token":"s"}}` {
		t.Errorf("a Secret in a patch: %s, %v", got, err)
	}
	if _, err := destination.MergePatch(json.RawMessage(`{`), nil); err == nil {
		t.Error("a document that is no JSON is accepted")
	}
}

func TestValidationErrorIsFlat(t *testing.T) {
	t.Parallel()
	err := errors.Join(
		destination.Require("url", ""),
		destination.Require("n", 1),
		nil,
		errors.Join(destination.Match("name", "A B", regexp.MustCompile(`^[a-z]+$`)), destination.Match("other", "", regexp.MustCompile(`x`))),
		destination.Within("auth", errors.Join(destination.Require("token", false), destination.Invalid("", "is odd"), destination.Within("a", destination.Invalid("b", "deep")))),
		errors.New("plain"),
		fmt.Errorf("wrapped: %w", destination.NewValidationError("limits", destination.Invalid("timeout", "is negative"))),
		&destination.ValidationError{Warnings: []*destination.FieldError{{Path: "w", Code: "old", Message: "is old"}}},
		destination.Within("list", destination.Invalid("[0]", "is first")),
	)
	var v *destination.ValidationError
	if !errors.As(destination.NewValidationError("destination", err), &v) {
		t.Fatal("no ValidationError")
	}
	var got []string
	for _, f := range v.Fields {
		got = append(got, f.Path+" "+f.Code)
	}
	want := []string{"url required", "name invalid", "auth.token required", "auth invalid", "auth.a.b invalid", " invalid", "timeout invalid", "list[0] invalid"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if len(v.Warnings) != 1 || v.Subject != "destination" {
		t.Errorf("%+v", v)
	}
	if text := v.Error(); !strings.HasPrefix(text, "delivery: invalid destination: url: is required; name: ") || strings.Contains(text, "\n") {
		t.Error(text)
	}
	if destination.NewValidationError("x", nil) != nil || destination.Within("x", nil) != nil {
		t.Error("nothing is an error")
	}
}

func TestSpecFromJSON(t *testing.T) {
	t.Parallel()
	var s destination.Spec
	err := json.Unmarshal([]byte(`{"type":"webhook","label":"SIEM","description":"d","icon":"i","instructions":"do","config":{"url":"https://example.com"},
		"tags":["a"],"default":true,"disabled":true,"limits":{"timeout":"45s","max_bytes":10},"retry":{"retries":3,"first":"2s"}}`), &s)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := destination.Raw(s.Config)
	if err != nil || string(raw) != `{"url":"https://example.com"}` || s.Config.DestinationType() != "webhook" {
		t.Errorf("%s, %v", raw, err)
	}
	if s.Label != "SIEM" || s.Description != "d" || s.Icon != "i" || s.Instructions != "do" || !slices.Equal(s.Tags, []string{"a"}) || !s.Default || !s.Disabled ||
		s.Limits != (destination.Limits{Timeout: destination.Duration(45 * time.Second), MaxBytes: 10}) || !cmp.Equal(s.Retry, retry.Policy{Retries: 3, First: 2 * time.Second}) {
		t.Errorf("%+v", s)
	}
	if err := json.Unmarshal([]byte(`{"limits":{"timeout":30}}`), &s); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a number as a duration: %v", err)
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	if destination.Days(7) != destination.Hours(168) || destination.Hours(1).String() != "1h0m0s" {
		t.Error("Days, Hours, String")
	}
	b, err := json.Marshal(map[string]destination.Duration{"d": destination.Hours(36)})
	if err != nil || string(b) != `{"d":"36h0m0s"}` {
		t.Errorf("%s, %v", b, err)
	}
	for text, ok := range map[string]bool{`"1m30s"`: true, `null`: true, `"soon"`: false, `5`: false, `""`: false, `{}`: false} {
		var d destination.Duration
		if err := json.Unmarshal([]byte(text), &d); (err == nil) != ok || err != nil && strings.Contains(err.Error(), "soon") {
			t.Errorf("%s: %v", text, err)
		}
	}
	var d destination.Duration
	if err := d.UnmarshalText([]byte("2h")); err != nil || d != destination.Hours(2) {
		t.Error(d, err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	base := destination.Limits{Timeout: destination.Hours(1), MaxBytes: 5}
	if got := (destination.Limits{MaxBytes: -1}).Or(base); got != (destination.Limits{Timeout: destination.Hours(1), MaxBytes: -1}) {
		t.Errorf("%+v", got)
	}
	if base.Validate() != nil || (destination.Limits{Timeout: -1}).Validate() == nil || (destination.Limits{Timeout: destination.Hours(25)}).Validate() == nil {
		t.Error("Validate")
	}
	if p := destination.Set("x"); *p != "x" {
		t.Error("Set")
	}
}

func ExampleSecret() {
	config := struct {
		User     string             `json:"user"`
		Password destination.Secret `json:"password"`
	}{"ada", destination.NewSecret("lovelace")}

	fmt.Printf("%+v\n", config)
	shown, _ := json.Marshal(config)
	fmt.Println(string(shown))
	stored, err := destination.Reveal(config)
	fmt.Println(string(stored), err)
	// Output:
	// {User:ada Password:[redacted]}
	// {"user":"ada","password":"[redacted]"}
	// {"user":"ada","password":"lovelace"} <nil>
}

func ExampleNewValidationError() {
	err := errors.Join(
		destination.Require("host", ""),
		destination.Invalid("port", "%d is not between 1 and 65535", 0),
	)
	fmt.Println(destination.NewValidationError("destination", destination.Within("config", err)))
	// Output: delivery: invalid destination: config.host: is required; config.port: 0 is not between 1 and 65535
}
