//nolint:thelper // a check is a test: a failure names its own line
package handlertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

func (s *suite) parser(t *testing.T) handler.ConfigParser {
	t.Helper()
	p, ok := handler.As[handler.ConfigParser](s.handler(t, t.Output()))
	if !ok {
		t.Skip("has no ParseConfig, as the Harness says") // complete has checked
	}
	return p
}

// roundTrip: what is stored is read as the same config, forever.
func (s *suite) roundTrip(t *testing.T) {
	parser := s.parser(t)
	h := s.handler(t, t.Output())
	parsed, _ := Parse(t, h, s.peer(t, s.Peer).Config)
	first, err := destination.Reveal(parsed)
	if err != nil {
		t.Fatal(err)
	}
	again, err := parser.ParseConfig(first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := destination.Reveal(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("the stored form changes when it is read again:\n%s\n%s", first, second)
	}
	if signer, ok := handler.As[handler.Signer](h); ok {
		completed, err := signer.Complete(again, nil)
		if err != nil {
			t.Fatal(err)
		}
		third, err := destination.Reveal(completed)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, third) {
			t.Error("Complete changes a config that was complete")
		}
	}
}

// invalid: all faulty fields are named at once.
func (s *suite) invalid(t *testing.T) {
	for _, c := range s.Invalid {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			raw, err := destination.Raw(c.Config)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.parser(t).ParseConfig(raw)
			if err == nil {
				t.Fatal("ParseConfig accepts it")
			}
			var v *destination.ValidationError
			if !errors.As(destination.NewValidationError("destination", err), &v) {
				t.Fatal("no ValidationError")
			}
			got := map[string]bool{}
			for _, f := range v.Fields {
				got[f.Path] = true
				if f.Message == "" || f.Code == "" {
					t.Errorf("%q has no message or no code", f.Path)
				}
			}
			want := slices.Clone(c.Paths)
			slices.Sort(want)
			if paths := slices.Sorted(maps.Keys(got)); !slices.Equal(paths, want) {
				t.Errorf("faulty fields %q, want %q:\n%v", paths, want, v)
			}
		})
	}
}

// malformed: no JSON makes ParseConfig panic, or quote a secret.
func (s *suite) malformed(t *testing.T) {
	parser := s.parser(t)
	p := s.peer(t, s.Peer)
	raw, err := destination.Raw(p.Config)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, raw []byte, secrets ...string) error {
		defer func() {
			if r := recover(); r != nil {
				t.Errorf("ParseConfig panics on %s: %v", what, r)
			}
		}()
		_, err := parser.ParseConfig(raw)
		if err != nil {
			search(t, "the error for "+what, err.Error(), secrets)
		}
		return err
	}
	for _, text := range []string{
		"", " ", "{", "}", "[]", "1", "true", `"text"`, "\x00", "\xff\xfe", `{"":{}}`, strings.Repeat(`{"a":`, 1000),
	} {
		if err := try(fmt.Sprintf("%.20q", text), []byte(text)); err == nil && !s.Unvalidated {
			t.Errorf("ParseConfig accepts %.20q", text)
		}
	}
	_ = try("null", []byte("null"))
	_ = try("an empty object", []byte("{}"))
	_ = try("trailing data", append(bytes.Clone(raw), "{}"...), p.Secrets...)
	_ = try("half of it", raw[:len(raw)/2], p.Secrets...)

	const canary = "canary-5c1f\r\nInjected: yes\x00"
	for _, wrong := range []any{nil, true, -1, 1e300, "", canary, []any{canary}, map[string]any{canary: canary}} {
		for _, path := range leaves(decode(t, raw)) {
			changed := decode(t, raw)
			was := replace(changed, path, wrong)
			b, err := json.Marshal(changed)
			if err != nil {
				t.Fatal(err)
			}
			secrets := p.Secrets
			if text, ok := was.(string); ok && slices.Contains(p.Secrets, text) {
				secrets = append(slices.Clone(secrets), "canary-5c1f")
			}
			_ = try(fmt.Sprintf("%T at %v", wrong, path), b, secrets...)
		}
	}
}

// hidden: neither the config nor its stored-for-show form shows a secret, whatever prints it.
func (s *suite) hidden(t *testing.T) {
	h := s.handler(t, t.Output())
	p := s.peer(t, s.Peer)
	parsed, redacted := Parse(t, h, p.Config)
	stored, err := destination.Reveal(parsed)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range p.Secrets {
		if !strings.Contains(string(stored), strings.Trim(quote(secret), `"`)) {
			t.Error("a secret of the Peer is not in the stored form: the handler loses it, or the Harness is wrong")
		}
	}
	search(t, "the redacted JSON", string(redacted), p.Secrets)
	for _, v := range []any{parsed, &parsed, []any{parsed}, struct{ c any }{parsed}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			search(t, "fmt with "+verb, fmt.Sprintf(verb, v), p.Secrets)
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("config", "config", parsed)
	slog.New(slog.NewTextHandler(&log, nil)).Info("config", "config", parsed)
	search(t, "slog", log.String(), p.Secrets)
}

// rotate: a new secret signs first and those so far beside it, or no more where there is no
// overlap; what results can be stored.
func (s *suite) rotate(t *testing.T) {
	h := s.handler(t, t.Output())
	signer, signs := handler.As[handler.Signer](h)
	parser, parses := handler.As[handler.ConfigParser](h)
	if !signs {
		return // it does not sign, or its secrets are replaced by an update
	}
	if !parses {
		t.Fatal("is a Signer, but has no ParseConfig")
	}
	p := s.peer(t, s.Peer)
	config, _ := Parse(t, h, p.Config)
	stored, err := destination.Reveal(config)
	if err != nil {
		t.Fatal(err)
	}
	before := signer.SigningSecrets(config)
	now := time.Now()
	for overlap, want := range map[time.Duration][]destination.Secret{time.Hour: before, 0: nil} {
		rotated, err := signer.Rotate(config, handler.Rotation{Now: now, Until: now.Add(overlap)})
		if err != nil {
			t.Fatalf("Rotate: %v", err)
		}
		raw, err := destination.Reveal(rotated)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parser.ParseConfig(raw)
		if err != nil {
			t.Fatalf("ParseConfig refuses what Rotate returned: %v", err)
		}
		after := signer.SigningSecrets(again)
		if len(after) != 1+len(want) || !slices.EqualFunc(after[1:], want, destination.Secret.Equal) ||
			slices.ContainsFunc(before, after[0].Equal) {
			t.Errorf(
				"%d secrets after a rotation with an overlap of %s, want a new one and then %d", len(after), overlap,
				len(want),
			)
		}
	}
	placeholder := handler.Rotation{Secret: destination.NewSecret(destination.Redacted), Now: now}
	if _, err := signer.Rotate(config, placeholder); err == nil {
		t.Error("Rotate takes the placeholder for a secret")
	}
	if unchanged, err := destination.Reveal(config); err != nil || !bytes.Equal(unchanged, stored) {
		t.Errorf("Rotate changes the config that it is given: %v", err)
	}
}

// warn: what is warned of is named, and no secret with it.
func (s *suite) warn(t *testing.T) {
	h := s.handler(t, t.Output())
	warner, ok := handler.As[handler.Warner](h)
	if !ok {
		return
	}
	p := s.peer(t, s.Peer)
	config, _ := Parse(t, h, p.Config)
	for _, w := range warner.Warn(config) {
		if w == nil || w.Code == "" || w.Message == "" {
			t.Errorf("a warning without a code or a message: %+v", w)
			continue
		}
		search(t, "the warning at "+w.Path, w.Message, p.Secrets)
	}
}

// describe: the description is complete, and its schema knows the fields of a working config.
func (s *suite) describe(t *testing.T) {
	h := s.handler(t, t.Output())
	d, ok := handler.As[handler.Describer](h)
	if !ok {
		return // delivery shows the type's name alone
	}
	info := d.Describe()
	if info.Type == "" || info.Title == "" || info.Description == "" {
		t.Errorf("Type, Title or Description is missing: %+v", info)
	}
	if info.Schema == nil {
		return
	}
	var schema struct {
		Properties map[string]json.RawMessage `json:"properties"`
	}
	if err := json.Unmarshal(info.Schema, &schema); err != nil {
		t.Fatalf("the schema: %v", err)
	}
	parsed, _ := Parse(t, h, s.peer(t, s.Peer).Config)
	raw, err := destination.Reveal(parsed)
	if err != nil {
		t.Fatal(err)
	}
	config, _ := decode(t, raw).(map[string]any) // nil: no fields to know
	for field := range config {
		if _, ok := schema.Properties[field]; !ok {
			t.Errorf("the schema does not know the field %q", field)
		}
	}
}

func decode(t *testing.T, raw []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// leaves returns the paths to all values of a JSON document but the document itself.
func leaves(v any, at ...any) [][]any {
	var paths [][]any
	add := func(key, v any) {
		path := append(slices.Clone(at), key)
		paths = append(append(paths, path), leaves(v, path...)...)
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			add(k, v[k])
		}
	case []any:
		for i := range v {
			add(i, v[i])
		}
	}
	return paths
}

// replace puts a value at a path and returns the one that was there.
func replace(v any, path []any, by any) (was any) {
	set := func() {}
	for _, key := range path {
		switch container := v.(type) {
		case map[string]any:
			name, _ := key.(string)
			v, set = container[name], func() { container[name] = by }
		case []any:
			i, _ := key.(int)
			v, set = container[i], func() { container[i] = by }
		}
	}
	set()
	return v
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string cannot fail
	return string(b)
}

// search fails the test if text holds a secret. It does not say which.
func search(t *testing.T, where, text string, secrets []string) {
	t.Helper()
	for i, secret := range secrets {
		hexadecimal := fmt.Sprintf("%x", secret)
		forms := []string{secret, strings.Trim(quote(secret), `"`), hexadecimal, strings.ToUpper(hexadecimal)}
		for _, form := range forms {
			if strings.Contains(text, form) {
				t.Errorf("secret %d can be seen in %s", i, where)
				break
			}
		}
	}
}
