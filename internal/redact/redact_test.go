package redact_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/redact"
)

const secret = `se"c/r+et & <long>`

func TestForms(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret(secret), destination.Secret{})
	r.Add("abc") // too short for a credential
	for _, text := range []string{
		secret, `{"a":"se\"c/r+et \u0026 \u003clong\u003e"}`, `{"a":"se\"c\/r+et \u0026 \u003clong\u003e"}`,
		"q=se%22c%2Fr%2Bet+%26+%3Clong%3E", "<p>se&#34;c/r+et &amp; &lt;long&gt;</p>",
	} {
		if got := r.Text("abc " + text + " abc"); !strings.Contains(got, destination.Redacted) || strings.Contains(got, "long") ||
			!strings.HasPrefix(got, "abc ") || !strings.HasSuffix(got, " abc") {
			t.Errorf("%s: %s", text, got)
		}
	}
	u, err := url.Parse("https://example.com/hook?sig=a%2Fbcd&bare-token")
	if err != nil {
		t.Fatal(err)
	}
	r.AddQuery(u)
	if got := r.Text("a/bcd a%2Fbcd bare-token"); strings.Trim(strings.ReplaceAll(got, destination.Redacted, ""), " ") != "" {
		t.Errorf("values of a query: %s", got)
	}
}

// A secret that is part of another must not leave the rest of that one.
func TestLongestFirst(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret("part"), destination.NewSecret("part-and-more"))
	if got := r.Text("part-and-more, part"); got != destination.Redacted+", "+destination.Redacted {
		t.Error(got)
	}
	if r.Longest() != len("part-and-more") {
		t.Error(r.Longest())
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret("secret-1"))
	inner := errors.New("broken")
	if err := r.Wrap(inner); !errors.Is(err, inner) {
		t.Error("an error without a secret does not stay as it is")
	}
	told := errors.Join(inner, errors.New("for secret-1"))
	if err := r.Wrap(told); errors.Is(err, told) || errors.Is(err, inner) || err.Error() != "broken for "+destination.Redacted {
		t.Error(err)
	}
}

func TestExcerpt(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret("secret-1"))
	if got := r.Excerpt([]byte("a\x00b\xff secret-1"), true); got != "a\uFFFDb\uFFFD "+destination.Redacted {
		t.Errorf("%q", got)
	}
	if got := r.Excerpt([]byte("0123456789 secre"), false); strings.Contains(got, "secr") || !strings.HasPrefix(got, "01234567") {
		t.Errorf("half a secret is left: %q", got)
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret("secret-1"))
	if got := r.Line(" a\r\nb\tsecret-1\x00\xffc "); got != "a b "+destination.Redacted+" \uFFFDc" {
		t.Errorf("%q", got)
	}
	if got := r.Line(strings.Repeat("ä", 300)); got != strings.Repeat("ä", 250)+"..." {
		t.Errorf("%d bytes", len(got))
	}
	if got := redact.Cut("aä", 2); got != "a" {
		t.Errorf("%q", got)
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://example.com/a":                  "https://example.com/a",
		"https://u:p@example.com/a?b=c&d&e=f#g":  "https://[redacted]@example.com/a?b=[redacted]&[redacted]&e=[redacted]",
		"https://example.com/a?&token=1&&next=2": "https://example.com/a?token=[redacted]&next=[redacted]",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(redact.URL(u), "%5Bredacted%5D", "[redacted]"); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret("secret-1"))
	sent := r.Request(http.Header{"X-Own": {"a secret-1"}, "X-Whole": {"b"}, "X-None": nil}, "X-Whole")
	if len(sent) != 2 || sent["X-Own"][0] != "a "+destination.Redacted || sent["X-Whole"][0] != destination.Redacted {
		t.Errorf("%v", sent)
	}
	many := http.Header{"Set-Cookie": {"a=b"}, "Location": {"https://example.com/?a=canary"}, "X-Long": {strings.Repeat("a", 5000)}}
	for i := range 100 {
		many.Set("Y-"+strings.Repeat("y", i+1), "v")
	}
	got := r.Response(many)
	if len(got) != 64 || got["Set-Cookie"][0] != destination.Redacted || strings.Contains(got["Location"][0], "canary") || len(got["X-Long"][0]) != 1024 {
		t.Errorf("%d headers: %v", len(got), got)
	}
	kept := redact.Headers(map[string][]string{"Authorization": {"a"}, "Idempotency-Key": {"b"}, "x-session-id": {"c"}, "Date": {"d"}})
	if kept["Authorization"][0] != destination.Redacted || kept["Idempotency-Key"][0] != "b" || kept["x-session-id"][0] != destination.Redacted || kept["Date"][0] != "d" {
		t.Errorf("%v", kept)
	}
}

// Parts of one upload fail side by side. Run it with -race.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret("secret-1"))
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			r.Add("secret-2")
			if got := r.Text("secret-1 secret-2"); strings.Contains(got, "secret") {
				t.Error(got)
			}
		})
	}
	group.Wait()
}
