package handler_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

type table struct {
	Name    string               `json:"name"`
	Rows    int                  `json:"rows"`
	Strict  bool                 `json:"strict"`
	Columns []string             `json:"columns"`
	Every   destination.Duration `json:"every"`
	Auth    struct {
		Password destination.Secret `json:"password"`
	} `json:"auth"`
}

func (c *table) Validate() error {
	return errors.Join(destination.Require("name", c.Name), destination.Match("name", c.Name, nameRule))
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"name":"a","rows":3,"every":"1h","auth":{"password":"p"}}`: "",
		``:                                     ": is not complete JSON",
		`{"name":`:                             ": is not complete JSON",
		`{"name" "a"}`:                         ": is not valid JSON, at byte 9",
		`{"name":"a"} {}`:                      ": has data after the JSON object",
		`{"name":"a"} x`:                       ": has data after the JSON object",
		`{"nam":"a"}`:                          "nam: is not a field of this type",
		`{"auth":{"pasword":"a"}}`:             "pasword: is not a field of this type",
		`{"name":17}`:                          "name: is a JSON number where a string belongs",
		`{"rows":"canary"}`:                    "rows: is a JSON string where a whole number in range belongs",
		`{"rows":1.5}`:                         "rows: is a JSON number where a whole number in range belongs",
		`{"strict":"canary"}`:                  "strict: is a JSON string where a bool belongs",
		`{"columns":"canary"}`:                 "columns: is a JSON string where a list belongs",
		`{"auth":"canary"}`:                    "auth: is a JSON string where an object belongs",
		`{"auth":{"password":["canary"]}}`:     "auth.password: is a JSON array where a string belongs",
		`{"auth":{"password":{"canary":"c"}}}`: "auth.password: is a JSON object where a string belongs",
		`{"every":"canary"}`:                   `every: is not a duration; expected for example "36h" or "1m30s"`,
		`{"every":17}`:                         `every: is not a duration; expected for example "36h" or "1m30s"`,
		`["canary"]`:                           ": is a JSON array where an object belongs",
	} {
		var c table
		err := handler.Decode(json.RawMessage(text), &c)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		var field *destination.FieldError
		if !errors.As(err, &field) || field.Path+": "+field.Message != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestParser(t *testing.T) {
	t.Parallel()
	var p handler.Parser[table]
	c, err := p.ParseConfig(json.RawMessage(`{"name":"users"}`))
	if err != nil || c.(table).Name != "users" {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := p.ParseConfig(json.RawMessage(`{}`)); err == nil || !strings.Contains(err.Error(), "name: is required") {
		t.Error(err)
	}
	if _, err := p.ParseConfig(json.RawMessage(`{"name":"A B"}`)); err == nil {
		t.Error("Validate was not asked")
	}
	var plain handler.Parser[map[string]int]
	if c, err := plain.ParseConfig(json.RawMessage(`{"a":1}`)); err != nil || c.(map[string]int)["a"] != 1 {
		t.Errorf("%v, %v", c, err)
	}
}

// Whatever comes, decoding does not panic and quotes no value: the canary stands in every string of
// the seeds.
func FuzzDecode(f *testing.F) {
	const canary = "canary-27"
	for _, seed := range []string{`{"name":"canary-27"}`, `{"rows":"canary-27"}`, `{"every":"canary-27"}`, `{"auth":{"password":{"a":"canary-27"}}}`,
		`["canary-27"]`, `"canary-27"`, `{"columns":{"a":"canary-27"}}`, `{"strict":"canary-27"`, `null`, `1e999`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var c table
		err := handler.Decode(raw, &c)
		var field *destination.FieldError
		if err != nil && !errors.As(err, &field) {
			t.Errorf("%q: no FieldError: %v", raw, err)
		}
		if field != nil && strings.Contains(field.Message, canary) {
			t.Errorf("%q: %v", raw, err)
		}
	})
}
