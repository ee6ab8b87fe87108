package webhook

import (
	"cmp"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/deliverykit/delivery/internal/redact"
)

// maxErrorExcerpt is how many bytes of a response an error quotes.
const maxErrorExcerpt = 200

// newRedactor returns a redactor for all credentials of a config and of its URL.
func newRedactor(c Config, u *url.URL) *redact.Redactor {
	signing := slices.Clone(c.SigningSecrets)
	for _, p := range c.PreviousSecrets {
		signing = append(signing, p.Secret)
	}
	r := redact.New(signing...)
	for _, s := range signing {
		text := s.Reveal()
		for _, prefix := range []string{secretPrefix, privatePrefix, rawPrefix} {
			text = strings.TrimPrefix(text, prefix)
		}
		r.Add(text)
	}
	for _, s := range c.SecretHeaders {
		r.Add(s.Reveal())
	}
	r.Add(c.Auth.Key.Reveal(), c.Auth.Token.Reveal(), c.Auth.Password.Reveal())
	if c.Auth.Type == AuthBasic {
		r.Add(base64.StdEncoding.EncodeToString([]byte(c.Auth.User + ":" + c.Auth.Password.Reveal())))
	}
	if o := c.Auth.OAuth2; c.Auth.Type == AuthOAuth2 {
		secret := o.ClientSecret.Reveal()
		pair := url.QueryEscape(o.ClientID) + ":" + url.QueryEscape(secret)
		r.Add(secret, base64.StdEncoding.EncodeToString([]byte(pair)))
		if u, err := url.Parse(o.TokenURL); err == nil {
			r.AddQuery(u)
		}
	}
	r.AddQuery(u)
	return r
}

// credentialHeaders are the headers of a request whose whole values are credentials.
func (c Config) credentialHeaders() []string {
	names := []string{"Authorization", headerSignature}
	if c.Auth.Type == AuthAPIKey {
		names = append(names, http.CanonicalHeaderKey(cmp.Or(c.Auth.Header, DefaultAPIKeyHeader)))
	}
	for name := range c.SecretHeaders {
		names = append(names, http.CanonicalHeaderKey(name))
	}
	return names
}
