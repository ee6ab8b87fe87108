// Package redact takes credentials out of what is kept for people to read.
package redact

import (
	"net/http"
	"strings"
)

const placeholder = "[redacted]"

// words in a header's name that make its value a credential.
var words = []string{"auth", "cookie", "token", "secret", "key", "signature", "password", "credential", "session"}

// exempt are names with such a word that hold none.
var exempt = map[string]bool{"Idempotency-Key": true, "Www-Authenticate": true}

// Headers returns a copy of h with the values of credential headers replaced.
func Headers(h map[string][]string) map[string][]string {
	if h == nil {
		return nil
	}
	c := make(map[string][]string, len(h))
	for name, values := range h {
		if sensitive(name) {
			values = []string{placeholder}
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
	for _, w := range words {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}
