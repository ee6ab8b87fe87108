package destination

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
)

// Redacted is the placeholder that a Secret shows in place of its value.
const Redacted = "[redacted]"

// Secret holds a credential. Printing, logging and encoding it shows [Redacted]; [Secret.Reveal] is
// the only way to the value. The zero Secret is "not set" and encodes as null, so that a reader can
// tell a missing credential from a hidden one. Dumpers that follow pointers with package unsafe
// still see the value.
type Secret struct {
	v *secretValue
}

type secretValue struct {
	text  *string // fmt follows one pointer, even of an unexported field, where a verb is wrong for it
	clear bool    // set only on the private copies that Reveal encodes
}

// NewSecret returns a Secret with a value, the zero Secret for "".
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{&secretValue{text: &value}}
}

// Reveal returns the value, "" if none is set.
func (s Secret) Reveal() string {
	if s.v == nil {
		return ""
	}
	return *s.v.text
}

// IsSet reports whether there is a value.
func (s Secret) IsSet() bool { return s.v != nil }

// IsRedacted reports whether the value is the placeholder itself. A form or an API client that was
// shown the redacted config sends it back.
func (s Secret) IsRedacted() bool { return s.Reveal() == Redacted }

// Equal reports whether both hold the same value.
func (s Secret) Equal(o Secret) bool { return s.Reveal() == o.Reveal() }

// String returns Redacted, or "" if nothing is set.
func (s Secret) String() string {
	if s.v == nil {
		return ""
	}
	return Redacted
}

// Format prints what String returns, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue logs what String returns.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText writes what String returns.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON writes Redacted, or null if nothing is set.
func (s Secret) MarshalJSON() ([]byte, error) {
	switch {
	case s.v == nil:
		return []byte("null"), nil
	case s.v.clear:
		return json.Marshal(*s.v.text)
	}
	return json.Marshal(Redacted)
}

// UnmarshalJSON reads a value from a JSON string; null and "" leave nothing set.
func (s *Secret) UnmarshalJSON(b []byte) error {
	var text string
	var wrong *json.UnmarshalTypeError
	if err := json.Unmarshal(b, &text); errors.As(err, &wrong) {
		// encoding/json adds the path.
		return &json.UnmarshalTypeError{Value: wrong.Value, Type: reflect.TypeFor[string]()}
	} else if err != nil {
		return errors.New("a secret is a JSON string") // without what was there instead: it may be the secret
	}
	*s = NewSecret(text)
	return nil
}

// Reveal encodes config as JSON with its secrets in clear, to store or compare it. It fails if a
// secret would still come out redacted (it is the placeholder, or a MarshalJSON of the config hides
// it) and if a json.RawMessage in it is not JSON.
func Reveal(config any) (json.RawMessage, error) {
	raw, err := RevealPartial(config)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(raw, []byte(`"`+Redacted+`"`)) {
		return nil, fmt.Errorf("destination: the config holds the placeholder %q where a secret belongs", Redacted)
	}
	return raw, nil
}

// RevealPartial is Reveal for an update: placeholders pass, and are filled from the stored config
// later.
func RevealPartial(config any) (json.RawMessage, error) {
	raw, err := json.Marshal(config) // refuses what has no end, which the copy below would follow
	if v := reflect.ValueOf(config); err == nil && v.IsValid() {
		raw, err = json.Marshal(revealed(v).Interface())
	}
	if err != nil {
		return nil, fmt.Errorf("destination: the config cannot be encoded as JSON: %w", err)
	}
	return raw, nil
}

// revealed returns a copy of v whose secrets encode in clear. What it shares with v it does not
// change.
func revealed(v reflect.Value) reflect.Value {
	t := v.Type()
	if t == reflect.TypeFor[Secret]() {
		s, _ := v.Interface().(Secret)
		if s.v == nil {
			return v
		}
		return reflect.ValueOf(Secret{&secretValue{text: s.v.text, clear: true}})
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return v
		}
		c := reflect.New(t).Elem()
		if v.Kind() == reflect.Pointer {
			c.Set(reflect.New(t.Elem()))
			c.Elem().Set(revealed(v.Elem()))
		} else {
			c.Set(revealed(v.Elem()))
		}
		return c
	case reflect.Struct:
		return revealedStruct(v)
	case reflect.Slice:
		if v.IsNil() || t.Elem().Kind() == reflect.Uint8 {
			return v
		}
		c := reflect.MakeSlice(t, v.Len(), v.Len())
		for i := range v.Len() {
			c.Index(i).Set(revealed(v.Index(i)))
		}
		return c
	case reflect.Array:
		c := reflect.New(t).Elem()
		for i := range v.Len() {
			c.Index(i).Set(revealed(v.Index(i)))
		}
		return c
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		c := reflect.MakeMapWithSize(t, v.Len())
		for it := v.MapRange(); it.Next(); {
			c.SetMapIndex(it.Key(), revealed(it.Value()))
		}
		return c
	}
	return v
}

func revealedStruct(v reflect.Value) reflect.Value {
	t := v.Type()
	c := reflect.New(t).Elem()
	c.Set(v)
	for i := range t.NumField() {
		if f := c.Field(i); f.CanSet() {
			f.Set(revealed(v.Field(i)))
		} else if t.Field(i).Anonymous && f.Kind() == reflect.Struct {
			revealPromoted(f, v.Field(i))
		}
	}
	return c
}

// revealPromoted reaches the exported fields of an embedded struct whose own type is unexported:
// encoding/json promotes them, and reflection may set them though not the struct as a whole.
func revealPromoted(c, v reflect.Value) {
	for i := range c.NumField() {
		if f := c.Field(i); f.CanSet() {
			f.Set(revealed(v.Field(i)))
		}
	}
}

// FillRedacted returns update with each placeholder replaced by the value that stored has in the
// same place. It is an error, which names the path, if stored has none there, or if the placeholder
// is in a list whose length has changed.
func FillRedacted(update, stored json.RawMessage) (json.RawMessage, error) {
	var u, s any
	if err := unmarshalNumber(update, &u); err != nil {
		return nil, err
	}
	if err := unmarshalNumber(stored, &s); err != nil {
		return nil, err
	}
	u, err := fill("", u, s)
	if err != nil {
		return nil, err
	}
	return json.Marshal(u)
}

func fill(path string, u, s any) (any, error) {
	switch u := u.(type) {
	case string:
		if u != Redacted {
			return u, nil
		}
		if s, ok := s.(string); ok && s != "" {
			return s, nil
		}
		return nil, Invalid(path, "is the placeholder %q, but no secret is stored here; give the value", Redacted)
	case map[string]any:
		stored, _ := s.(map[string]any)
		var errs []error
		for k, v := range u {
			f, err := fill(join(path, k), v, stored[k])
			errs = append(errs, err)
			u[k] = f
		}
		return u, errors.Join(errs...)
	case []any:
		stored, _ := s.([]any)
		var errs []error
		for i, v := range u {
			var counterpart any
			if len(stored) == len(u) {
				counterpart = stored[i]
			}
			f, err := fill(fmt.Sprintf("%s[%d]", path, i), v, counterpart)
			errs = append(errs, err)
			u[i] = f
		}
		return u, errors.Join(errs...)
	}
	return u, nil
}

// MergePatch applies an RFC 7396 merge patch to a JSON document.
func MergePatch(doc json.RawMessage, patch map[string]any) (json.RawMessage, error) {
	raw, err := RevealPartial(patch)
	if err != nil {
		return nil, err
	}
	var p, d any
	if err := unmarshalNumber(raw, &p); err != nil {
		return nil, err
	}
	if err := unmarshalNumber(doc, &d); err != nil {
		return nil, err
	}
	return json.Marshal(merge(d, p))
}

func merge(doc, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	d, ok := doc.(map[string]any)
	if !ok {
		d = map[string]any{}
	}
	for k, v := range p {
		if v == nil {
			delete(d, k)
		} else {
			d[k] = merge(d[k], v)
		}
	}
	return d
}

func unmarshalNumber(raw json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return d.Decode(v)
}

func join(path, key string) string {
	if path == "" || strings.HasPrefix(key, "[") {
		return path + key
	}
	return path + "." + key
}
