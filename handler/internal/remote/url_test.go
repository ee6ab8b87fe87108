package remote_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
)

func TestURL(t *testing.T) {
	t.Parallel()
	strict := remote.URL{Example: "https://storage.example.com", HTTPHint: "set allow_http", Login: "credentials"}
	open := remote.URL{Example: "https://example.com/hook", AllowHTTP: true, Login: "auth", Path: true, Query: true, MaxLength: 60}
	for raw, want := range map[string]struct{ strict, open string }{
		"https://example.com":             {},
		"https://example.com:8443/":       {},
		"http://127.0.0.1:9000":           {},
		"http://[::1]:9000":               {},
		"http://s3.localhost":             {},
		"http://example.com":              {strict: "is plain http, which everyone on the way can read; use https, or set allow_http"},
		"https://example.com/canary":      {strict: "has a path"},
		"https://example.com?canary=1":    {strict: "has a query"},
		"https://example.com?":            {strict: "has a query"},
		"https://example.com#canary":      {"has a fragment", "has a fragment"},
		"https://example.com#":            {"has a fragment", "has a fragment"},
		"https://canary:canary@e.example": {"put them into credentials", "put them into auth"},
		"https://example.com:0":           {"has a port", "has a port"},
		"https://example.com:":            {"has a port", "has a port"},
		"https://example.com:99999":       {"has a port", "has a port"},
		"ftp://example.com":               {"does not start with https://", "does not start with https://"},
		"https://":                        {"has no host", "has no host"},
		"mailto:canary":                   {`is not a URL; expected for example "https://storage.example.com"`, "is not a URL"},
		"canary":                          {"is not a URL", "is not a URL"},
		"":                                {"is not a URL", "is not a URL"},
		"https://exa mple.com":            {"is not a URL", "is not a URL"},
		"https://example.com/" + strings.Repeat("a", 60): {"has a path", "is longer than 60 bytes"},
	} {
		for _, c := range []struct {
			rules remote.URL
			want  string
		}{{strict, want.strict}, {open, want.open}} {
			err := c.rules.Check("endpoint", raw)
			var field *destination.FieldError
			switch {
			case c.want == "" && err != nil, c.want != "" && !errors.As(err, &field):
				t.Errorf("%q: %v, want %q", raw, err, c.want)
			case c.want != "" && (!strings.Contains(err.Error(), c.want) || field.Path != "endpoint" || strings.Contains(err.Error(), "canary")):
				t.Errorf("%q: %v, want %q", raw, err, c.want)
			}
		}
	}
	if err := strict.Check("endpoint", "http://canary@example.com:0/canary?canary#canary"); strings.Count(err.Error(), "endpoint: ") != 6 {
		t.Errorf("not all faults are reported: %v", err)
	}
}

func TestCheckHost(t *testing.T) {
	t.Parallel()
	refused := errors.New("netguard: 10.0.0.1 is private")
	env := handler.Env{CheckHost: func(host string) error {
		if host == "10.0.0.1" {
			return refused
		}
		return nil
	}}
	if err := remote.CheckHost(env, "endpoint", "https://10.0.0.1:9000/a"); err == nil || err.Error() != "endpoint: 10.0.0.1 is private" {
		t.Error(err)
	}
	for _, raw := range []string{"https://example.com", "", "::", "mailto:a"} {
		if err := remote.CheckHost(env, "endpoint", raw); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
	}
	if err := remote.CheckHost(handler.Env{}, "endpoint", "https://10.0.0.1"); err != nil {
		t.Errorf("without a policy: %v", err)
	}
}
