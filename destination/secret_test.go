package destination_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"text/template"

	"github.com/deliverykit/delivery/destination"
)

const canary = "canary-7f3a"

type inner struct {
	Key  destination.Secret `json:"key"`
	Note string             `json:"note"`
}

type Embedded struct {
	Token destination.Secret `json:"token"`
}

type embedded struct {
	Promoted destination.Secret `json:"promoted"`
}

// config has a secret in every kind of place.
type config struct {
	Embedded
	embedded
	Plain   destination.Secret            `json:"plain"`
	Pointer *destination.Secret           `json:"pointer"`
	List    []destination.Secret          `json:"list"`
	Array   [1]destination.Secret         `json:"array"`
	Map     map[string]destination.Secret `json:"map"`
	Inner   inner                         `json:"inner"`
	Inners  []*inner                      `json:"inners"`
	Any     any                           `json:"any"`
	Unset   destination.Secret            `json:"unset"`
	Left    destination.Secret            `json:"left,omitzero"`
	Bytes   []byte                        `json:"bytes"`
	hidden  destination.Secret
	deep    *inner
}

func (config) DestinationType() string { return "test" }

func secretConfig() config {
	s := destination.NewSecret(canary)
	i := inner{Key: s, Note: "seen"}
	return config{
		Embedded: Embedded{s}, embedded: embedded{s}, Plain: s, Pointer: &s, List: []destination.Secret{s}, Array: [1]destination.Secret{s},
		Map: map[string]destination.Secret{"a": s}, Inner: i, Inners: []*inner{&i}, Any: map[string]any{"x": []any{s, &i}},
		Bytes: []byte("raw"), hidden: s, deep: &i,
	}
}

const secretsShown = 11 // in the JSON of secretConfig

func TestSecretIsShownNowhere(t *testing.T) {
	t.Parallel()
	c := secretConfig()
	check := func(where, text string) {
		t.Helper()
		for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprintf("%d", []byte(canary))} {
			if strings.Contains(text, form) {
				t.Errorf("%s shows it: %s", where, text)
			}
		}
	}
	for name, v := range map[string]any{
		"secret": c.Plain, "pointer": c.Pointer, "config": c, "config pointer": &c, "list": c.List, "map": c.Map, "unexported": struct{ s destination.Secret }{c.Plain},
		"unexported deep": struct{ s *config }{&c}, "interface": struct{ v any }{c}, "error": fmt.Errorf("failed with %v", c),
		"wrapped error": errors.Join(fmt.Errorf("%+v", c)), "reflect": reflect.ValueOf(c),
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%t", "%p", "%T", "%20s", "%.3s", "%z"} {
			check(name+" with "+verb, fmt.Sprintf(verb, v))
		}
		for kind, h := range map[string]func(*bytes.Buffer) slog.Handler{
			"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
			"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
		} {
			var b bytes.Buffer
			slog.New(h(&b)).Info("x", "v", v, slog.Group("g", "v", v))
			check(name+" in slog "+kind, b.String())
		}
		b, err := json.Marshal(v)
		check(name+" in JSON", fmt.Sprint(string(b), err))
		b, err = xml.Marshal(v)
		check(name+" in XML", fmt.Sprint(string(b), err))
		var text strings.Builder
		err = template.Must(template.New("").Parse("{{.}}{{printf `%s` .}}")).Execute(&text, v)
		check(name+" in a template", fmt.Sprint(text.String(), err))
	}
	text, err := c.Plain.MarshalText()
	check("text", fmt.Sprint(string(text), err, c.Plain.String(), c.Plain.LogValue()))
	if c.Plain.String() != destination.Redacted || (destination.Secret{}).String() != "" {
		t.Error("a set and an unset secret cannot be told apart")
	}
}

func TestSecretBasics(t *testing.T) {
	t.Parallel()
	a, b, unset := destination.NewSecret("a"), destination.NewSecret("b"), destination.NewSecret("")
	if !a.IsSet() || unset.IsSet() || a.Equal(b) || !a.Equal(destination.NewSecret("a")) || a.Reveal() != "a" || unset.Reveal() != "" {
		t.Error("basics")
	}
	if a.IsRedacted() || !destination.NewSecret(destination.Redacted).IsRedacted() || unset.IsRedacted() {
		t.Error("the placeholder")
	}
	for text, want := range map[string]string{`"x"`: "x", `""`: "", `null`: ""} {
		var s destination.Secret
		if err := json.Unmarshal([]byte(text), &s); err != nil || s.Reveal() != want {
			t.Errorf("%s: %q, %v", text, s.Reveal(), err)
		}
	}
	for _, text := range []string{`17`, `["canary-7f3a"]`, `{"canary-7f3a":1}`, `"canary-7f3a`} {
		var c struct {
			A struct{ B destination.Secret }
		}
		err := json.Unmarshal([]byte(`{"A":{"B":`+text+`}}`), &c)
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", text, err)
		}
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "A.B" {
			t.Errorf("%s: field %q", text, wrong.Field)
		}
	}
}

// Reveal shows every secret that encoding/json reaches, changes nothing, and what it gives reads
// back as the same.
func TestRevealRoundTrip(t *testing.T) {
	t.Parallel()
	c := secretConfig()
	redactedBefore, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := destination.Reveal(c)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(raw), canary); n != secretsShown || strings.Contains(string(raw), destination.Redacted) {
		t.Errorf("%d secrets, want %d: %s", n, secretsShown, raw)
	}
	if !strings.Contains(string(raw), `"unset":null`) || strings.Contains(string(raw), `"left"`) || !strings.Contains(string(raw), `"bytes":"cmF3"`) {
		t.Errorf("%s", raw)
	}
	var back config
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	again, err := destination.Reveal(&back)
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("%v\n%s\n%s", err, raw, again)
	}
	redactedAfter, err := json.Marshal(c)
	if err != nil || !bytes.Equal(redactedBefore, redactedAfter) {
		t.Errorf("the config has changed: %v\n%s\n%s", err, redactedBefore, redactedAfter)
	}
	if n := strings.Count(string(redactedAfter), destination.Redacted); n != secretsShown {
		t.Errorf("%d placeholders: %s", n, redactedAfter)
	}
}

type pointing struct{ *embedded }

type hiding struct{ s destination.Secret }

func (h hiding) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]any{"s": h.s}) }

func TestRevealRefuses(t *testing.T) {
	t.Parallel()
	cycle := map[string]any{}
	cycle["self"] = cycle
	for name, v := range map[string]any{
		"the placeholder":       inner{Key: destination.NewSecret(destination.Redacted)},
		"a hidden pointer":      pointing{&embedded{destination.NewSecret(canary)}},
		"a MarshalJSON":         hiding{destination.NewSecret(canary)},
		"broken raw JSON":       struct{ Raw json.RawMessage }{json.RawMessage("{")},
		"what JSON cannot hold": make(chan int),
		"a cycle":               cycle,
	} {
		raw, err := destination.Reveal(v)
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %s, %v", name, raw, err)
		}
	}
	if raw, err := destination.Reveal(nil); err != nil || string(raw) != "null" {
		t.Errorf("nil: %s, %v", raw, err)
	}
	if raw, err := destination.RevealPartial(inner{Key: destination.NewSecret(destination.Redacted)}); err != nil || !strings.Contains(string(raw), destination.Redacted) {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestRaw(t *testing.T) {
	t.Parallel()
	s := inner{Key: destination.NewSecret(canary), Note: "n"}
	want := `{"key":"` + canary + `","note":"n"}`
	for name, c := range map[string]destination.Config{
		"string": destination.As("t", want), "bytes": destination.As("t", []byte(want)), "raw": destination.As("t", json.RawMessage(want)),
		"struct": destination.As("t", s), "pointer": destination.As("t", &s),
		"map": destination.As("t", map[string]any{"key": destination.NewSecret(canary), "note": "n"}),
	} {
		raw, err := destination.Raw(c)
		if err != nil || string(raw) != want || c.DestinationType() != "t" {
			t.Errorf("%s: %s, %v", name, raw, err)
		}
	}
	if raw, err := destination.Raw(secretConfig()); err != nil || strings.Count(string(raw), canary) != secretsShown {
		t.Errorf("%s, %v", raw, err)
	}
	for _, bad := range []any{"{" + canary, []byte(canary), json.RawMessage("")} {
		if _, err := destination.Raw(destination.As("t", bad)); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%v", err)
		}
	}
}
