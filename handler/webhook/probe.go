package webhook

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

const (
	testTime        = time.Minute
	handshakeTime   = 10 * time.Second
	certificateSoon = 14 * 24 * time.Hour
	testTopic       = "delivery.test"
)

// Test implements handler.Tester, within a minute: it resolves the host, connects and makes the TLS
// handshake, through the same guarded dialer as a delivery, gets an access token where there is
// OAuth2, and sends a request as a delivery would, signed and with all credentials. That request is
// marked by "X-Delivery-Test: true" and has the topic "delivery.test" and the body
//
//	{"type":"delivery.test","timestamp":"2026-06-21T10:00:00Z","data":{"message":"..."}}
//
// A receiver should verify it as any other, answer it with 2xx and do nothing else. A config that
// is to be given a signing secret when it is saved is tested with one that is thrown away.
func (h *Handler) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	if h.env.Dial == nil {
		return nil, errors.New("webhook: the handler was not opened")
	}
	p := &probe{start: time.Now()}
	if !config.Unsigned && len(config.SigningSecrets) == 0 {
		config.SigningSecrets = []destination.Secret{config.generate()}
		p.thrownAway = true
	}
	a, err := newAttempt(config, testEvent(req, config, h.now()))
	if err != nil {
		return nil, err
	}
	p.attempt = a
	ctx, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	p.run(ctx, h)
	p.report.Latency = destination.Duration(time.Since(p.start))
	return &p.report, nil
}

// testEvent is what a connection test delivers.
func testEvent(req *handler.TestRequest, config Config, at time.Time) *handler.Request {
	body, _ := json.Marshal(map[string]any{ // strings cannot fail
		"type":      testTopic,
		"timestamp": at.UTC().Format(time.RFC3339),
		"data": map[string]string{
			"message": "This is a connection test. Nothing has happened, and nothing needs to be done.",
		},
	})
	return &handler.Request{
		MessageID:    "test-" + rand.Text(),
		Attempt:      1,
		Organization: req.Organization,
		Destination: &destination.Destination{
			ID: req.DestinationID, Organization: req.Organization, Type: config.DestinationType(),
		},
		Config: config,
		Payload: payload.NewContent(payload.Info{ContentType: "application/json", Size: int64(len(body))},
			func(_ context.Context, offset int64) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(body[offset:])), nil
			}),
		Topic:     testTopic,
		CreatedAt: at,
		Test:      true,
	}
}

type probe struct {
	start      time.Time
	report     destination.TestReport
	attempt    *attempt
	thrownAway bool // the secret
}

// step adds what was found, without credentials.
func (p *probe) step(name string, ok bool, latency time.Duration, finding string, args ...any) {
	finding = p.attempt.redact.Text(fmt.Sprintf(finding, args...))
	p.report.Steps = append(
		p.report.Steps,
		destination.TestStep{Name: name, OK: ok, Latency: destination.Duration(latency), Finding: finding},
	)
	p.report.OK = ok
}

func (p *probe) warn(code string, until time.Time, format string, args ...any) {
	p.report.Warnings = append(
		p.report.Warnings, destination.Warning{Code: code, Message: fmt.Sprintf(format, args...), Until: until.UTC()},
	)
}

func (p *probe) run(ctx context.Context, h *Handler) {
	p.clientCertificate(h.now())
	conn, ok := p.connect(ctx, h, p.attempt.url)
	if !ok {
		return
	}
	ok = p.attempt.url.Scheme != "https" || p.handshake(ctx, h, conn)
	_ = conn.Close()
	if ok && p.authenticate(ctx, h) {
		p.request(ctx, h)
	}
}

func (p *probe) clientCertificate(now time.Time) {
	if c := p.attempt.config.TLS.client(); c != nil && c.NotAfter.Sub(now) < clientSoon {
		verb := "expires"
		if now.After(c.NotAfter) {
			verb = "has expired"
		}
		p.warn(
			"client_certificate_expires", c.NotAfter,
			"The client certificate %s on %s. Replace tls.certificate and tls.key", verb,
			c.NotAfter.UTC().Format(time.DateOnly),
		)
	}
}

// authenticate gets an access token, always a new one.
func (p *probe) authenticate(ctx context.Context, h *Handler) bool {
	a := p.attempt
	if a.config.Auth.Type != AuthOAuth2 {
		return true
	}
	start := time.Now()
	h.tokens.Forget(a.id())
	err := a.authorize(ctx, h, "")
	took := time.Since(start)
	if err != nil {
		p.step("authenticate", false, took, "%s", finding(err))
		return false
	}
	p.step("authenticate", true, took, "The token endpoint gave an access token")
	return true
}

// request makes a delivery. A refusal of the credentials, however late it shows, is reported as the
// step that they belong to.
func (p *probe) request(ctx context.Context, h *Handler) {
	a := p.attempt
	start := time.Now()
	result, err := a.deliver(ctx, h)
	took := time.Since(start)
	if err == nil {
		note := ""
		if p.thrownAway {
			note = ", signed with a secret that was made for this test"
		}
		p.step(
			"request", true, took, "The other side answered %d to a test request%s", result.Exchange.StatusCode, note,
		)
		return
	}
	name, hint := "request", ""
	switch e := handler.Classify(err); {
	case clientRefused(err):
		name = "authenticate"
	case e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden:
		name = "authenticate"
		hint = ". Check the credentials in auth and secret_headers, and the signing secret at the other side"
		if a.config.Auth.Type == AuthNone && len(a.config.SecretHeaders) == 0 {
			hint = ". The other side wants credentials, and there is no auth; or it does not know the signing secret"
		}
		if p.thrownAway {
			hint += ". It cannot know that one: this test was signed with a secret made for it alone. Save the " +
				"destination, give the other side its secret, and test again"
		}
	case e.StatusCode == http.StatusNotFound:
		hint = ". Check the path of the URL"
	case e.StatusCode == http.StatusMethodNotAllowed:
		hint = ". Check the method"
	case e.StatusCode >= http.StatusInternalServerError:
		hint = ". The other side fails: its log should tell why"
	case e.StatusCode >= http.StatusBadRequest:
		hint = ". The other side refuses the test request: let it answer 2xx where " + headerTest + " is true"
	}
	p.step(name, false, took, "%s%s", finding(err), hint)
}

// finding is an error as a sentence for people.
func finding(err error) string {
	text := strings.TrimPrefix(err.Error(), "webhook: ")
	r, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(r)) + text[size:]
}

func (p *probe) connect(ctx context.Context, h *Handler, u *url.URL) (net.Conn, bool) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	var names resolution
	conn, err := h.env.Dial(names.trace(ctx), "tcp", net.JoinHostPort(u.Hostname(), port))
	resolved, resolving, dnsErr := names.result()
	connecting := time.Since(p.start) - resolving
	switch {
	case dnsErr != nil:
		p.step(
			"resolve", false, resolving, "%s has no address: %v. Check the host name in the URL", u.Hostname(),
			dnsErr,
		)
		return nil, false
	case len(resolved) > 0:
		p.step("resolve", true, resolving, "%s is %s", u.Hostname(), strings.Join(resolved, ", "))
	}
	var permanent interface{ Permanent() bool }
	switch {
	case errors.As(err, &permanent) && permanent.Permanent():
		p.step("connect", false, connecting, "This service may not connect there: %v", err)
	case err != nil && ctx.Err() != nil:
		p.step(
			"connect", false, connecting,
			"No connection to port %s in time. Check the port, and firewalls on the way", port,
		)
	case err != nil:
		p.step(
			"connect", false, connecting,
			"No connection: %v. Check that the other side listens on port %s and lets this service in", err, port,
		)
	default:
		p.step("connect", true, connecting, "Connected to %s", conn.RemoteAddr())
	}
	return conn, err == nil
}

func (p *probe) handshake(ctx context.Context, h *Handler, conn net.Conn) bool {
	transport, release, err := h.transport(ctx, p.attempt.config.TLS, p.attempt.id())
	if err != nil {
		p.step("tls", false, 0, "%s", finding(err))
		return false
	}
	defer release()
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if t, ok := transport.(*http.Transport); ok && t.TLSClientConfig != nil {
		settings = t.TLSClientConfig.Clone()
	}
	settings.ServerName = strings.TrimSuffix(p.attempt.url.Hostname(), ".")
	settings.NextProtos = []string{"h2", "http/1.1"}
	client := ""
	certificates := settings.Certificates
	settings.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(certificates) == 0 {
			client = "; the other side asks for a client certificate, and there is none"
			return &tls.Certificate{}, nil
		}
		client = "; the other side asked for the client certificate"
		return &certificates[0], nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	start := time.Now()
	c := tls.Client(conn, settings)
	err = c.HandshakeContext(ctx)
	took := time.Since(start)
	if err != nil {
		p.noHandshake(err, took, client != "" && len(certificates) == 0)
		return false
	}
	p.handshaken(c.ConnectionState(), h.now(), took, client)
	return true
}

// noHandshake reports why there is no TLS. wanted says that the other side asked for a certificate
// that there is not.
func (p *probe) noHandshake(err error, took time.Duration, wanted bool) {
	var record tls.RecordHeaderError
	var refused *tls.CertificateVerificationError
	switch {
	case errors.As(err, &record):
		p.step("tls", false, took, "The other side does not speak TLS on this port. Check scheme and port of the URL")
	case errors.As(err, &refused):
		p.step("tls", false, took, "The certificate is not accepted: %v. "+
			"Its owner has to renew or correct it, or tls.ca has to name its authority", refused.Err)
	case wanted || clientRefused(err):
		p.step("authenticate", false, took, "No TLS handshake: %v; %s", err, p.attempt.clientHint())
	default:
		p.step("tls", false, took,
			"No TLS handshake: %v. Check that the other side speaks TLS 1.2 or 1.3 on this port", err)
	}
}

func (p *probe) handshaken(state tls.ConnectionState, now time.Time, took time.Duration, client string) {
	leaf := state.PeerCertificates[0]
	until := leaf.NotAfter.UTC().Format(time.DateOnly)
	// Certificates of some days are renewed late in their life.
	if soon := min(certificateSoon, leaf.NotAfter.Sub(leaf.NotBefore)/3); leaf.NotAfter.Sub(now) < soon {
		p.warn("certificate_expires", leaf.NotAfter, "The certificate of %s expires on %s. Its owner has to renew it",
			p.attempt.url.Hostname(), until)
	}
	p.step("tls", true, took, "%s; the certificate is valid until %s%s", tls.VersionName(state.Version), until, client)
}

// resolution listens to the dialer's own name resolution, which may be under way still when the
// dialer has given up.
type resolution struct {
	mu    sync.Mutex
	start time.Time
	took  time.Duration
	addrs []string
	err   error
}

func (r *resolution) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.start = time.Now()
		},
		DNSDone: func(info httptrace.DNSDoneInfo) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.took, r.err = time.Since(r.start), info.Err
			for _, a := range info.Addrs {
				r.addrs = append(r.addrs, a.String())
			}
		},
	})
}

func (r *resolution) result() (addrs []string, took time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addrs, r.took, r.err
}
