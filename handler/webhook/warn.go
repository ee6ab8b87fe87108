package webhook

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/internal/remote"
)

// Warn implements handler.Warner.
func (h *Handler) Warn(config any) []*destination.FieldError {
	c, ok := config.(Config)
	if !ok {
		return nil
	}
	var warnings []*destination.FieldError
	warn := func(path, code, format string, args ...any) {
		warnings = append(
			warnings, &destination.FieldError{Path: path, Code: code, Message: fmt.Sprintf(format, args...)},
		)
	}
	proven := c.Auth.Type != AuthNone || len(c.SecretHeaders) > 0 || c.TLS.Certificate != ""
	u, err := url.Parse(c.URL)
	if err != nil {
		u = &url.URL{}
	}
	if u.Scheme == "http" && !remote.Loopback(u.Hostname()) {
		if proven {
			warn(
				"url", "insecure",
				"is plain http: everyone on the way can read the payload and the credentials, and use them; use https",
			)
		} else {
			warn("url", "insecure", "is plain http: everyone on the way can read the payload; use https")
		}
	} else if c.AllowHTTP {
		warn("allow_http", "unused", "is set, but the URL does not need it; take it out")
	}
	if names := credentialNames(u); len(names) > 0 {
		warn(
			"url", "insecure",
			"has what looks like a credential in its query (%s), where the service shows it and others log it; "+
				"use auth or secret_headers",
			strings.Join(names, ", "),
		)
	}
	switch {
	case c.Unsigned && !proven:
		warn(
			"unsigned", "insecure",
			"is set and there is no auth: the receiver cannot tell these requests from forged ones",
		)
	case c.Unsigned:
		warn(
			"unsigned", "insecure",
			"is set: the receiver cannot tell that a request was not changed, nor that it is not an old one sent again",
		)
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range c.Headers {
			if looksSecret(name) && !yield(name) {
				return
			}
		}
	}) {
		warn(
			"headers."+name, "insecure",
			"looks like a credential, which everyone who sees the destination can read; move it to secret_headers",
		)
	}
	h.warnOfCertificate(c, warn)
	return warnings
}

func (h *Handler) warnOfCertificate(c Config, warn func(path, code, format string, args ...any)) {
	now := h.now()
	cert := c.TLS.client()
	switch {
	case cert == nil:
	case now.After(cert.NotAfter):
		warn(
			"tls.certificate", "expired", "has expired on %s; replace it and its key",
			cert.NotAfter.UTC().Format(time.DateOnly),
		)
	case cert.NotAfter.Sub(now) < clientSoon:
		warn(
			"tls.certificate", "expires", "expires on %s; replace it and its key before",
			cert.NotAfter.UTC().Format(time.DateOnly),
		)
	case now.Before(cert.NotBefore):
		warn("tls.certificate", "invalid", "is valid only from %s on", cert.NotBefore.UTC().Format(time.DateOnly))
	}
	if cert != nil && len(cert.ExtKeyUsage) > 0 && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) &&
		!slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
		warn(
			"tls.certificate", "invalid",
			"is not made for clients (extended key usage clientAuth), and servers may refuse it",
		)
	}
	chain, _ := certificates(c.TLS.CA)
	for _, ca := range chain {
		if now.After(ca.NotAfter) {
			warn(
				"tls.ca", "expired", "has a certificate that has expired on %s",
				ca.NotAfter.UTC().Format(time.DateOnly),
			)
		}
	}
}

// credentialNames are the names in a URL's query that credentials have.
func credentialNames(u *url.URL) []string {
	var names []string
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(name); err == nil && validName(name) && looksSecret(name) &&
			!slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

var secretWords = []string{
	"token", "secret", "password", "passwd", "api_key", "api-key", "apikey", "signature", "credential",
}

func looksSecret(name string) bool {
	name = strings.ToLower(name)
	for _, word := range secretWords {
		if strings.Contains(name, word) {
			return true
		}
	}
	return name == "key" || name == "sig" || name == "code"
}
