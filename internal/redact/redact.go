// Package redact takes credentials out of text that is kept for people to read: errors, logs and
// records of exchanges.
package redact

import (
	"cmp"
	"encoding/json"
	"errors"
	"html"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/deliverykit/delivery/destination"
)

const (
	minSecret = 4   // bytes: anything shorter is no credential, and would blot out the text
	maxLine   = 500 // bytes
)

// Redactor replaces known secrets in text. It recognises a secret as it is and as it looks in JSON,
// in a query and in HTML: some services echo what they receive. It is safe for concurrent use.
type Redactor struct {
	mu      sync.Mutex
	added   []string // not yet in forms
	forms   []string // the longest first; never changed, only replaced
	longest int
}

// New returns a Redactor for the secrets that are set.
func New(secrets ...destination.Secret) *Redactor {
	r := &Redactor{}
	for _, s := range secrets {
		r.Add(s.Reveal())
	}
	return r
}

// Add takes further secrets. It ignores those of less than 4 bytes.
func (r *Redactor) Add(secrets ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range secrets {
		if len(s) >= minSecret {
			r.added = append(r.added, s)
		}
	}
}

// AddQuery takes the values of a URL's query as secrets.
func (r *Redactor) AddQuery(u *url.URL) {
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		_, raw, ok := strings.Cut(pair, "=")
		if !ok {
			raw = pair
		}
		r.Add(raw)
		if v, err := url.QueryUnescape(raw); err == nil {
			r.Add(v)
		}
	}
}

// all returns the forms of all secrets. Most Redactors are never asked, so the forms are made when
// they are first needed.
func (r *Redactor) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.added) == 0 {
		return r.forms
	}
	forms := slices.Clone(r.forms)
	for _, s := range r.added {
		inJSON, _ := json.Marshal(s) // a string cannot fail
		plain := string(inJSON[1 : len(inJSON)-1])
		forms = append(forms, s, plain, strings.ReplaceAll(plain, "/", `\/`), url.QueryEscape(s), html.EscapeString(s))
	}
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	r.forms, r.added = slices.Compact(forms), nil
	if len(r.forms) > 0 {
		r.longest = len(r.forms[0])
	}
	return r.forms
}

// Longest returns the length in bytes of the longest form of a secret. An excerpt has to be read by
// that much further than it is kept, so that a secret at its end is recognised.
func (r *Redactor) Longest() int {
	r.all()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.longest
}

// Text returns s without the secrets.
func (r *Redactor) Text(s string) string {
	for _, secret := range r.all() {
		s = strings.ReplaceAll(s, secret, destination.Redacted)
	}
	return s
}

// Line returns s without the secrets, on one line of at most 500 bytes.
func (r *Redactor) Line(s string) string { return Line(r.Text(s), maxLine) }

// Wrap returns err, or an error without its chain where the text of err holds a secret.
func (r *Redactor) Wrap(err error) error {
	text := err.Error()
	if clean := r.Text(text); clean != text {
		return errors.New(Line(clean, maxLine))
	}
	return err
}

// Excerpt returns the beginning of a response as text that every database takes, without the
// secrets. whole reports that b is all of the response: otherwise the end is left out as far as a
// secret could have been cut in two there.
func (r *Redactor) Excerpt(b []byte, whole bool) string {
	s := r.Text(string(b))
	if !whole {
		s = s[:max(0, len(s)-r.Longest())]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Line returns s on one line of at most limit bytes and an ellipsis.
func Line(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if short := Cut(s, limit); len(short) < len(s) {
		return short + "..."
	}
	return s
}

// Cut shortens s to at most n bytes, between two characters.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// URL returns a URL as text, with placeholders for the values of its query and for its user.
func URL(u *url.URL) string {
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
