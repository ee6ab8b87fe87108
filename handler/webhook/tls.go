package webhook

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/perdest"
)

const (
	maxPEM        = 64 << 10
	maxTransports = 256              // destinations with TLS settings of their own, whose connections are kept
	idleTransport = 30 * time.Second // how long their connections are kept
	clientSoon    = 30 * 24 * time.Hour
)

// TLS is how connections to the URL are made; those to the token endpoint of OAuth2 are not. The
// zero TLS is that of the service.
type TLS struct {
	// Certificate is the client certificate in PEM, with the intermediate ones after it, for
	// servers that demand one.
	Certificate string `json:"certificate,omitempty"`
	// Key is its private key in PEM, not encrypted.
	Key destination.Secret `json:"key,omitzero"`
	// CA are the certificates in PEM of the authorities that the server's certificate is accepted
	// from, in place of the system's.
	CA string `json:"ca,omitempty"`
}

// validate checks all that time does not change.
func (t TLS) validate() error {
	var errs []error
	chain, problem := certificates(t.Certificate)
	if problem != "" {
		errs = append(errs, destination.Invalid("certificate", "%s", problem))
	}
	switch {
	case t.Certificate == "" && t.Key.IsSet():
		errs = append(errs, destination.Require("certificate", ""))
	case t.Certificate != "" && !t.Key.IsSet():
		errs = append(errs, destination.Require("key", ""))
	case t.Key.IsRedacted():
		errs = append(errs, destination.Invalid("key", "is the placeholder %q; give the value", destination.Redacted))
	case t.Key.IsSet():
		if problem := wrongKey(t.Key.Reveal(), chain); problem != "" {
			errs = append(errs, destination.Invalid("key", "%s", problem))
		}
	}
	if _, problem := certificates(t.CA); problem != "" {
		errs = append(errs, destination.Invalid("ca", "%s", problem))
	}
	return errors.Join(errs...)
}

// certificates reads a sequence of certificates in PEM, or returns what is wrong with it.
func certificates(text string) (chain []*x509.Certificate, problem string) {
	if len(text) > maxPEM {
		return nil, fmt.Sprintf("is longer than %d bytes", maxPEM)
	}
	rest := []byte(text)
	for len(rest) > 0 && strings.TrimSpace(string(rest)) != "" {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return nil, `is not PEM that begins with "-----BEGIN CERTIFICATE-----", or has something else after it`
		}
		if block.Type != "CERTIFICATE" {
			return nil, "has something that is not a certificate; give certificates alone"
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Sprintf("has a certificate, the %d., that cannot be read", len(chain)+1)
		}
		chain = append(chain, c)
	}
	return chain, ""
}

// wrongKey returns what is wrong with a private key, without quoting it.
func wrongKey(text string, chain []*x509.Certificate) string {
	if len(text) > maxPEM {
		return fmt.Sprintf("is longer than %d bytes", maxPEM)
	}
	block, rest := pem.Decode([]byte(text))
	for block != nil && block.Type == "EC PARAMETERS" { // as OpenSSL writes it before the key
		block, rest = pem.Decode(rest)
	}
	switch {
	case block == nil:
		return `is not PEM that begins with "-----BEGIN PRIVATE KEY-----"`
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return `is encrypted; take the passphrase off, as "openssl pkey" does`
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return "is not a private key in PKCS #8, PKCS #1 or SEC 1"
	}
	if len(chain) == 0 {
		return "" // said of the certificate
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(chain[0].PublicKey) {
		return "does not belong to tls.certificate, or the certificate is not the first of those"
	}
	return ""
}

func parseKey(der []byte) (crypto.Signer, error) {
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	if s, ok := k.(crypto.Signer); ok {
		return s, nil
	}
	return nil, errors.New("is a key that cannot sign")
}

// client is the client certificate, nil if there is none.
func (t TLS) client() *x509.Certificate {
	if chain, _ := certificates(t.Certificate); len(chain) > 0 {
		return chain[0]
	}
	return nil
}

// current refuses a client certificate that has expired. ParseConfig does not: a stored config must
// be readable then.
func (t TLS) current(now time.Time) error {
	if c := t.client(); c != nil && now.After(c.NotAfter) {
		return &destination.FieldError{Path: "certificate", Code: "expired",
			Message: "has expired on " + c.NotAfter.UTC().Format(time.DateOnly) +
				"; get a new one and its key from its issuer"}
	}
	return nil
}

// settings returns base with the certificates of t.
func (t TLS) settings(base *tls.Config) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if base != nil {
		c = base.Clone()
	}
	if t.Certificate != "" {
		var blocks []byte
		for block, rest := pem.Decode([]byte(t.Key.Reveal())); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "EC PARAMETERS" {
				blocks = append(blocks, pem.EncodeToMemory(block)...)
			}
		}
		pair, err := tls.X509KeyPair([]byte(t.Certificate), blocks)
		if err != nil {
			return nil, errors.New("webhook: the client certificate and its key cannot be used; set both anew")
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if t.CA != "" {
		chain, _ := certificates(t.CA)
		c.RootCAs = x509.NewCertPool()
		for _, ca := range chain {
			c.RootCAs.AddCert(ca)
		}
	}
	return c, nil
}

// transport returns what requests to a destination go through: the service's own, unless t has
// settings of its own. release is called after the request.
func (h *Handler) transport(ctx context.Context, t TLS, id string) (rt http.RoundTripper, release func(), err error) {
	if t == (TLS{}) {
		return h.env.Client.Transport, func() {}, nil
	}
	if err := t.current(h.now()); err != nil {
		return nil, nil, &handler.Error{
			Category: handler.Authentication,
			Verdict:  handler.Retry, // it is mended while the payload waits
			Err: fmt.Errorf(
				"webhook: the client certificate of this destination: %w", destination.Within("tls", err),
			),
		}
	}
	own, release, err := h.links.Get(
		ctx, id, perdest.Fingerprint(t), func() (*http.Transport, error) { return h.newTransport(t) },
	)
	if err != nil {
		return nil, nil, err
	}
	return own, release, nil
}

func (h *Handler) newTransport(t TLS) (*http.Transport, error) {
	base, ok := h.env.Client.Transport.(*http.Transport)
	if !ok {
		return nil, handler.Fail(
			handler.Internal,
			fmt.Errorf("webhook: TLS settings need an *http.Transport, not a %T", h.env.Client.Transport),
		)
	}
	own := base.Clone()
	settings, err := t.settings(base.TLSClientConfig)
	if err != nil {
		return nil, handler.Fail(handler.Configuration, err)
	}
	own.TLSClientConfig, own.IdleConnTimeout = settings, idleTransport
	return own, nil
}
