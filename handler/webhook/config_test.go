package webhook_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
)

func paths(err error) []string {
	var v *destination.ValidationError
	if !errors.As(destination.NewValidationError("destination", err), &v) {
		return nil
	}
	p := make([]string, len(v.Fields))
	for i, f := range v.Fields {
		p[i] = f.Path
	}
	slices.Sort(p)
	return p
}

func TestURLRules(t *testing.T) {
	t.Parallel()
	open, strict := webhook.New(), webhook.New(webhook.WithHTTPSOnly())
	handlertest.Open(t, open)
	handlertest.Open(t, strict)
	for _, c := range []struct {
		url              string
		allow, ok, plain bool // plain: refused WithHTTPSOnly
	}{
		{url: "https://example.com", ok: true},
		{url: "HTTPS://example.com:8443/a/b?c=d", ok: true},
		{url: "https://example.com/%20?", ok: true},
		{url: "https://[2606:4700::1111]/", ok: true},
		{url: "http://127.0.0.1:80/", ok: true},
		{url: "http://[::1]:8080", ok: true},
		{url: "http://localhost:1", ok: true},
		{url: "http://a.localhost.:1", ok: true},
		{url: "http://example.com"},
		{url: "http://example.com", allow: true, ok: true, plain: true},
		{url: "http://localhost.example.com"},
		{url: "ftp://example.com", allow: true},
		{url: "example.com"},
		{url: "//example.com/"},
		{url: "/hook"},
		{url: "https:example.com"},
		{url: "https://"},
		{url: "https:///path"},
		{url: "https://:443/"},
		{url: "https://example.com:"},
		{url: "https://example.com:0"},
		{url: "https://example.com:65536"},
		{url: "https://user@example.com"},
		{url: "https://user:their-password@example.com"},
		{url: "https://@example.com"},
		{url: "https://example.com/#part"},
		{url: "https://example.com/#"},
		{url: "https://example.com/a b\x7f"},
		{url: "https://example.com/\r\nX: y"},
		{url: "https://exa mple.com/"},
		{url: "https://example.com/%zz"},
		{url: "https://10.0.0.1/"},
		{url: "https://0x7f.1/"},
		{url: "https://2130706433/"},
		{url: "https://metadata.google.internal/"},
		{url: "https://intranet/"},
		{url: "https://bücher.example/"},
		{url: "https://example.com/" + strings.Repeat("a", 2048)},
	} {
		raw, err := json.Marshal(webhook.Config{URL: c.url, AllowHTTP: c.allow})
		if err != nil {
			t.Fatal(err)
		}
		_, err = open.ParseConfig(raw)
		if (err == nil) != c.ok {
			t.Errorf("%q: %v", c.url, err)
		}
		for _, p := range paths(err) {
			if p != "url" {
				t.Errorf("%q: path %q", c.url, p)
			}
		}
		if err != nil && strings.Contains(err.Error(), "their-password") {
			t.Errorf("%q is quoted: %v", c.url, err)
		}
		if _, err := strict.ParseConfig(raw); (err == nil) != (c.ok && !c.plain) {
			t.Errorf("%q over HTTPS only: %v", c.url, err)
		}
	}
}

func TestHeaderRules(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config webhook.Config
		want   []string
	}{
		"good": {config: webhook.Config{
			Headers:       map[string]string{"X-A": "b", "accept": "*/*", "X-Empty": "", "X-Utf8": "ü"},
			SecretHeaders: map[string]destination.Secret{"CF-Access-Client-Secret": destination.NewSecret("s")},
		}},
		"names": {webhook.Config{Headers: map[string]string{"": "a", "a b": "c", "ü": "d", "a:": "e", "a\r\nb": "f", strings.Repeat("a", 257): "g"}},
			[]string{"headers", "headers.a b", "headers.ü", "headers.a:", "headers.a\r\nb", "headers." + strings.Repeat("a", 257)}},
		"values": {webhook.Config{Headers: map[string]string{"A": "a\nb", "B": "a\rb", "C": "\x00", "D": " a", "E": strings.Repeat("a", 8193)}},
			[]string{"headers.A", "headers.B", "headers.C", "headers.D", "headers.E"}},
		"reserved": {webhook.Config{Headers: map[string]string{"host": "a", "content-length": "1", "Transfer-Encoding": "chunked", "connection": "x",
			"Content-Type": "a/b", "authorization": "x", "Cookie": "x", "webhook-signature": "x", "Webhook-Anything": "x", "x-delivery-topic": "x", "traceparent": "x"}},
			[]string{"headers.host", "headers.content-length", "headers.Transfer-Encoding", "headers.connection", "headers.Content-Type", "headers.authorization",
				"headers.Cookie", "headers.webhook-signature", "headers.Webhook-Anything", "headers.x-delivery-topic", "headers.traceparent"}},
		"twice": {webhook.Config{
			Headers:       map[string]string{"X-A": "1", "x-a": "2", "idempotency-key": "3", "X-Key": "4"},
			SecretHeaders: map[string]destination.Secret{"x-A": destination.NewSecret("s")},
			Auth:          webhook.APIKey("x-key", "k"),
		}, []string{"headers.idempotency-key", "headers.x-a", "headers.X-Key", "secret_headers.x-A"}},
		"renamed": {webhook.Config{IdempotencyHeader: "X-Id", TimestampHeader: "x-id"}, []string{"timestamp_header"}},
		"renamed to reserved": {webhook.Config{IdempotencyHeader: "Host", TimestampHeader: "Content-Type", Auth: webhook.APIKey("Webhook-Id", "k")},
			[]string{"idempotency_header", "timestamp_header", "auth.header"}},
		"default by name": {config: webhook.Config{IdempotencyHeader: "Idempotency-Key", TimestampHeader: "x-delivery-timestamp"}},
		"secret values": {webhook.Config{SecretHeaders: map[string]destination.Secret{"A": {}, "B": destination.NewSecret("a\nb"), "C": destination.NewSecret("[redacted]")}},
			[]string{"secret_headers.A", "secret_headers.B", "secret_headers.C"}},
		"too many": {webhook.Config{Headers: many(51)}, []string{"headers"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.config.URL = "https://example.com"
			slices.Sort(c.want)
			if got := paths(c.config.Validate()); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func many(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("X-%d", i)] = "v"
	}
	return m
}

func TestAuthRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		auth string
		want []string
	}{
		{`{}`, nil},
		{`{"type":"api_key","key":"k"}`, nil},
		{`{"type":"api_key","header":"X-Token","key":"k"}`, nil},
		{`{"type":"bearer","token":"t"}`, nil},
		{`{"type":"basic","user":"u","password":"p"}`, nil},
		{`{"type":"digest","user":"u"}`, []string{"auth.type"}},
		{`{"type":"api_key"}`, []string{"auth.key"}},
		{`{"type":"bearer"}`, []string{"auth.token"}},
		{`{"type":"basic"}`, []string{"auth.password", "auth.user"}},
		{`{"token":"t"}`, []string{"auth.token"}},
		{`{"header":"X"}`, []string{"auth.header"}},
		{`{"type":"bearer","token":"t","user":"u","password":"p","header":"X","key":"k"}`, []string{"auth.header", "auth.key", "auth.password", "auth.user"}},
		{`{"type":"bearer","token":"a\r\nX: y"}`, []string{"auth.token"}},
		{`{"type":"bearer","token":"[redacted]"}`, []string{"auth.token"}},
		{`{"type":"api_key","header":"a b","key":"k"}`, []string{"auth.header"}},
		{`{"type":"basic","user":"u:v","password":"p"}`, []string{"auth.user"}},
	} {
		h := webhook.New()
		_, err := h.ParseConfig(json.RawMessage(`{"url":"https://example.com","auth":` + c.auth + `}`))
		if got := paths(err); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.auth, got, c.want)
		}
	}
}

func TestSecretRules(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		secrets  []string
		unsigned bool
		want     []string
	}{
		"none":             {},
		"two":              {secrets: []string{newSecret, oldSecret}},
		"without prefix":   {secrets: []string{newSecret[len("whsec_"):]}},
		"64 bytes":         {secrets: []string{"whsec_GVyboDzd847WDyDR9WppF0lCkqTnq8Qp8xN+Wy6V5DJRTXgYg3+JXe5Fp+q8IrD5qS08kUMmWovqxpBqOg+ogg=="}},
		"65 bytes":         {secrets: []string{"whsec_gjiRstyW0ObSYQhzREAQbcT4rrTLbQG+yr0I8rDfnorJqii9kJel8zncbg29+tjTQV1AQmQtHj4/souqbKRL2NM="}, want: []string{"signing_secrets[0]"}},
		"23 bytes":         {secrets: []string{"whsec_1AfFjj7q0s4mgWUtuEuUECWZuR9WJnE="}, want: []string{"signing_secrets[0]"}},
		"plain text":       {secrets: []string{newSecret, "correct horse battery staple, as it is"}, want: []string{"signing_secrets[1]"}},
		"without padding":  {secrets: []string{strings.TrimRight(oldSecret, "=")}, want: []string{"signing_secrets[0]"}},
		"URL base64":       {secrets: []string{"whsec_-_8QERITFBUWFxgZGhscHR4fICEiIyQlJicoKSor"}, want: []string{"signing_secrets[0]"}},
		"with a line end":  {secrets: []string{newSecret + "\n"}, want: []string{"signing_secrets[0]"}},
		"zeros":            {secrets: []string{"whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, want: []string{"signing_secrets[0]"}},
		"twice":            {secrets: []string{newSecret, newSecret}, want: []string{"signing_secrets[1]"}},
		"twice, no prefix": {secrets: []string{newSecret, newSecret[len("whsec_"):]}, want: []string{"signing_secrets[1]"}},
		"placeholder":      {secrets: []string{"[redacted]"}, want: []string{"signing_secrets[0]"}},
		"not set":          {secrets: []string{""}, want: []string{"signing_secrets[0]"}},
		"too many":         {secrets: slices.Repeat([]string{newSecret}, 9), want: []string{"signing_secrets"}},
		"though unsigned":  {secrets: []string{newSecret}, unsigned: true, want: []string{"signing_secrets"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := webhook.Config{URL: "https://example.com", SigningSecrets: secrets(c.secrets...), Unsigned: c.unsigned}.Validate()
			if got := paths(err); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q: %v", got, c.want, err)
			}
			for _, s := range c.secrets {
				if err != nil && len(s) > 0 && s != destination.Redacted && strings.Contains(err.Error(), s) {
					t.Errorf("a secret is quoted: %v", err)
				}
			}
		})
	}
}

func TestCompleteGeneratesASecretOnce(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	complete := func(c webhook.Config) webhook.Config {
		v, err := h.Complete(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v.(webhook.Config)
	}
	first, second := complete(webhook.Config{URL: "https://example.com"}), complete(webhook.Config{URL: "https://example.com"})
	if err := first.Validate(); err != nil || len(first.SigningSecrets) != 1 {
		t.Errorf("%v: %+v", err, first)
	}
	if first.SigningSecrets[0].Equal(second.SigningSecrets[0]) {
		t.Error("two destinations get the same secret")
	}
	if again := complete(first); !again.SigningSecrets[0].Equal(first.SigningSecrets[0]) {
		t.Error("a secret that is there is replaced")
	}
	if unsigned := complete(webhook.Config{Unsigned: true}); len(unsigned.SigningSecrets) != 0 {
		t.Error("an unsigned config gets a secret")
	}
}

// The schema is written by hand: it must have the fields of Config, and mark its secrets.
func TestSchemaMatchesConfig(t *testing.T) {
	t.Parallel()
	type schema struct {
		Type       any               `json:"type"`
		Properties map[string]schema `json:"properties"`
		Items      *schema           `json:"items"`
		Additional json.RawMessage   `json:"additionalProperties"`
		Enum       []string          `json:"enum"`
		WriteOnly  bool              `json:"writeOnly"`
		Format     string            `json:"format"`
	}
	var s schema
	if err := json.Unmarshal(webhook.New().Describe().Schema, &s); err != nil {
		t.Fatal(err)
	}
	var compare func(path string, s schema, t reflect.Type) []string
	compare = func(path string, s schema, typ reflect.Type) []string {
		fields := map[string]reflect.Type{}
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			fields[name] = typ.Field(i).Type
		}
		var problems []string
		if got, want := slices.Sorted(maps.Keys(s.Properties)), slices.Sorted(maps.Keys(fields)); !slices.Equal(got, want) {
			problems = append(problems, fmt.Sprintf("%s has %q, the schema %q", path, want, got))
		}
		for name, field := range fields {
			p := s.Properties[name]
			switch {
			case field == reflect.TypeFor[destination.Secret]():
				if !p.WriteOnly {
					problems = append(problems, path+"."+name+" is a secret, not marked writeOnly")
				}
				continue
			case field == reflect.TypeFor[[]destination.Secret]():
				if p.Items == nil || !p.Items.WriteOnly {
					problems = append(problems, path+"."+name+" has secrets, not marked writeOnly")
				}
			case field == reflect.TypeFor[map[string]destination.Secret]():
				if !strings.Contains(string(p.Additional), `"writeOnly": true`) {
					problems = append(problems, path+"."+name+" has secrets, not marked writeOnly")
				}
			case field.Kind() == reflect.Slice && field.Elem().Kind() == reflect.Struct:
				if p.Items == nil {
					problems = append(problems, path+"."+name+" says nothing of its items")
				} else {
					problems = append(problems, compare(path+"."+name+"[]", *p.Items, field.Elem())...)
				}
			case field == reflect.TypeFor[time.Time]():
				if p.Type != "string" || p.Format != "date-time" {
					problems = append(problems, path+"."+name+" is a time, the schema says otherwise")
				}
				continue
			case field.Kind() == reflect.Struct:
				problems = append(problems, compare(path+"."+name, p, field)...)
			}
			want := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer",
				reflect.Map: "object", reflect.Struct: "object", reflect.Slice: "array"}[field.Kind()]
			if p.Type != want {
				problems = append(problems, fmt.Sprintf("%s.%s is a %s, the schema says %v", path, name, want, p.Type))
			}
		}
		return problems
	}
	for _, problem := range compare("config", s, reflect.TypeFor[webhook.Config]()) {
		t.Error(problem)
	}
	for _, m := range s.Properties["method"].Enum {
		if err := (webhook.Config{URL: "https://example.com", Method: m}).Validate(); err != nil {
			t.Errorf("method %s: %v", m, err)
		}
	}
	want := []string{string(webhook.AuthNone), string(webhook.AuthAPIKey), string(webhook.AuthBearer), string(webhook.AuthBasic), string(webhook.AuthOAuth2)}
	if got := s.Properties["auth"].Properties["type"].Enum; !slices.Equal(got, want) {
		t.Errorf("auth types %q, want %q", got, want)
	}
}

func TestCompleteKeepsTheSecretsThereWere(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	before := webhook.Config{URL: "https://example.com", SigningSecrets: []destination.Secret{webhook.GenerateSecret(), webhook.GenerateSecret()}}
	v, err := h.Complete(webhook.Config{URL: "https://example.org"}, before)
	if err != nil {
		t.Fatal(err)
	}
	got := h.SigningSecrets(v)
	if len(got) != 2 || !got[0].Equal(before.SigningSecrets[0]) || !got[1].Equal(before.SigningSecrets[1]) {
		t.Error("an update without signing secrets does not keep the stored ones")
	}
	v, err = h.Complete(webhook.Config{URL: "https://example.org", Unsigned: true}, before)
	if err != nil || len(h.SigningSecrets(v)) != 0 {
		t.Errorf("unsigned has %d secrets, %v", len(h.SigningSecrets(v)), err)
	}
}
