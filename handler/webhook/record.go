package webhook

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"html"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/deliverykit/delivery/destination"
)

const (
	maxErrorExcerpt  = 200     // bytes of a response in an error
	maxRecordHeaders = 64      // of a response
	maxRecordValue   = 1 << 10 // of a response's header
	minRedacted      = 4       // bytes: what is shorter is no credential, and would blot out the text
)

// redactor takes credentials out of what the other side sends: some services echo what they get.
type redactor struct {
	secrets []string // the longest first
	longest int
}

func newRedactor(c Config, u *url.URL) redactor {
	var r redactor
	signing := slices.Clone(c.SigningSecrets)
	for _, p := range c.PreviousSecrets {
		signing = append(signing, p.Secret)
	}
	for _, s := range signing {
		text := s.Reveal()
		for _, prefix := range []string{secretPrefix, privatePrefix, rawPrefix} {
			text = strings.TrimPrefix(text, prefix)
		}
		r.add(s.Reveal(), text)
	}
	for _, s := range c.SecretHeaders {
		r.add(s.Reveal())
	}
	r.add(c.Auth.Key.Reveal(), c.Auth.Token.Reveal(), c.Auth.Password.Reveal())
	if c.Auth.Type == AuthBasic {
		r.add(base64.StdEncoding.EncodeToString([]byte(c.Auth.User + ":" + c.Auth.Password.Reveal())))
	}
	if o := c.Auth.OAuth2; c.Auth.Type == AuthOAuth2 {
		secret := o.ClientSecret.Reveal()
		r.add(secret, base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(o.ClientID)+":"+url.QueryEscape(secret))))
		if u, err := url.Parse(o.TokenURL); err == nil {
			r.query(u)
		}
	}
	r.query(u)
	return r
}

// query adds the values of a URL's query.
func (r *redactor) query(u *url.URL) {
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		_, raw, ok := strings.Cut(pair, "=")
		if !ok {
			raw = pair
		}
		r.add(raw)
		if v, err := url.QueryUnescape(raw); err == nil {
			r.add(v)
		}
	}
}

// add takes secrets, each also as it looks in JSON, in a query and in HTML.
func (r *redactor) add(secrets ...string) {
	for _, s := range secrets {
		if len(s) < minRedacted {
			continue
		}
		inJSON, _ := json.Marshal(s) // a string cannot fail
		plain := string(inJSON[1 : len(inJSON)-1])
		for _, form := range []string{s, plain, strings.ReplaceAll(plain, "/", `\/`), url.QueryEscape(s), html.EscapeString(s)} {
			if !slices.Contains(r.secrets, form) {
				r.secrets = append(r.secrets, form)
				r.longest = max(r.longest, len(form))
			}
		}
	}
	slices.SortFunc(r.secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
}

func (r redactor) text(s string) string {
	for _, secret := range r.secrets {
		s = strings.ReplaceAll(s, secret, destination.Redacted)
	}
	return s
}

// excerpt makes text of the beginning of a response. Of one that goes on, the end is left out where a secret could have
// been cut in two. A NUL, which not every database takes, is replaced as well as what is no UTF-8.
func (r redactor) excerpt(b []byte, whole bool) string {
	s := r.text(string(b))
	if !whole {
		s = s[:max(0, len(s)-r.longest)]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// request is the record of the headers sent: names of all, and values but for credentials.
func (r redactor) request(h http.Header, c Config) map[string][]string {
	record := map[string][]string{}
	secret := map[string]bool{"Authorization": true, headerSignature: true}
	if c.Auth.Type == AuthAPIKey {
		secret[http.CanonicalHeaderKey(cmp.Or(c.Auth.Header, DefaultAPIKeyHeader))] = true
	}
	for name := range c.SecretHeaders {
		secret[http.CanonicalHeaderKey(name)] = true
	}
	for name, values := range h {
		if len(values) == 0 {
			continue
		}
		record[name] = make([]string, len(values))
		for i, v := range values {
			record[name][i] = r.text(v)
			if secret[name] {
				record[name][i] = destination.Redacted
			}
		}
	}
	return record
}

// response is the record of the headers received, within bounds.
func (r redactor) response(h http.Header) map[string][]string {
	record := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if len(record) == maxRecordHeaders {
			break
		}
		for _, v := range h[name] {
			switch name {
			case "Set-Cookie":
				v = destination.Redacted
			case "Location", "Content-Location":
				if u, err := url.Parse(v); err == nil {
					v = redactURL(u)
				}
			}
			record[name] = append(record[name], cut(r.excerpt([]byte(v), true), maxRecordValue))
		}
	}
	return record
}

// redactURL hides the values of the query, and a password.
func redactURL(u *url.URL) string {
	c := *u
	if c.User != nil {
		c.User = url.User(destination.Redacted)
	}
	c.Fragment, c.RawFragment = "", ""
	pairs := strings.Split(c.RawQuery, "&")
	c.RawQuery, c.ForceQuery = "", false
	s := c.String()
	for i, pair := range pairs {
		if pair == "" {
			continue
		}
		separator := "&"
		if i == 0 || !strings.Contains(s, "?") {
			separator = "?"
		}
		key, _, ok := strings.Cut(pair, "=")
		if !ok {
			s += separator + destination.Redacted // a bare token
			continue
		}
		s += separator + key + "=" + destination.Redacted
	}
	return s
}

// cut shortens s to at most n bytes, between two characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// line makes one short line of s, for an error.
func line(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if short := cut(s, maxErrorExcerpt); len(short) < len(s) {
		return short + "..."
	}
	return s
}
