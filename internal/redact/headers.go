package redact

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/deliverykit/delivery/destination"
)

const (
	maxHeaders     = 64      // of a response
	maxHeaderValue = 1 << 10 // bytes, of a response
)

// words in the name of a header that make its value a credential.
var words = []string{"auth", "cookie", "token", "secret", "key", "signature", "password", "credential", "session"}

// exempt are the names with such a word whose values are no credentials.
var exempt = map[string]bool{"Idempotency-Key": true, "Www-Authenticate": true}

// Headers returns a copy of h with placeholders for the values of headers whose names are those of
// credentials.
func Headers(h map[string][]string) map[string][]string {
	if h == nil {
		return nil
	}
	c := make(map[string][]string, len(h))
	for name, values := range h {
		if sensitive(name) {
			values = []string{destination.Redacted}
		}
		c[name] = values
	}
	return c
}

func sensitive(name string) bool {
	if exempt[http.CanonicalHeaderKey(name)] {
		return false
	}
	name = strings.ToLower(name)
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(name, w) })
}

// Request returns the record of the headers of a request: all names, and the values without the
// secrets. credentials are the canonical names of headers whose whole values are secret.
func (r *Redactor) Request(h http.Header, credentials ...string) map[string][]string {
	record := map[string][]string{}
	for name, values := range h {
		if len(values) == 0 {
			continue
		}
		record[name] = make([]string, len(values))
		for i, v := range values {
			record[name][i] = r.Text(v)
			if slices.Contains(credentials, name) {
				record[name][i] = destination.Redacted
			}
		}
	}
	return record
}

// Response returns the record of the headers of a response: at most 64, each value without the
// secrets and at most 1 KiB long.
func (r *Redactor) Response(h http.Header) map[string][]string {
	record := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if len(record) == maxHeaders {
			break
		}
		for _, v := range h[name] {
			switch name {
			case "Set-Cookie":
				v = destination.Redacted
			case "Location", "Content-Location":
				if u, err := url.Parse(v); err == nil {
					v = URL(u)
				}
			}
			record[name] = append(record[name], Cut(r.Excerpt([]byte(v), true), maxHeaderValue))
		}
	}
	return record
}
