package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

const (
	handshakeTime   = 10 * time.Second
	certificateSoon = 14 * 24 * time.Hour
)

// Test implements handler.Tester: it resolves the host, connects and makes the TLS handshake, through the same guarded
// dialer as a delivery. It sends no request, because receivers would take one for an event; so credentials and the path
// are first proven by a delivery.
func (h *Handler) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	if h.env.Dial == nil {
		return nil, errors.New("webhook: the handler was not opened")
	}
	u, err := url.Parse(config.URL)
	if err != nil {
		return nil, errors.New("webhook: the URL is malformed")
	}
	p := &probe{start: time.Now()}
	p.run(ctx, h, u)
	p.report.Latency = time.Since(p.start)
	return &p.report, nil
}

type probe struct {
	start  time.Time
	report destination.TestReport
}

func (p *probe) step(name string, ok bool, latency time.Duration, finding string, args ...any) {
	p.report.Steps = append(p.report.Steps, destination.TestStep{Name: name, OK: ok, Latency: latency, Finding: fmt.Sprintf(finding, args...)})
	p.report.OK = ok
}

func (p *probe) run(ctx context.Context, h *Handler, u *url.URL) {
	conn, ok := p.connect(ctx, h, u)
	if !ok {
		return
	}
	defer conn.Close()
	if u.Scheme == "https" {
		p.handshake(ctx, h, conn, u.Hostname())
	}
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
		p.step("resolve", false, resolving, "%s has no address: %v. Check the host name in the URL", u.Hostname(), dnsErr)
		return nil, false
	case len(resolved) > 0:
		p.step("resolve", true, resolving, "%s is %s", u.Hostname(), strings.Join(resolved, ", "))
	}
	var permanent interface{ Permanent() bool }
	switch {
	case errors.As(err, &permanent) && permanent.Permanent():
		p.step("connect", false, connecting, "This service may not connect there: %v", err)
	case err != nil && ctx.Err() != nil:
		p.step("connect", false, connecting, "No connection to port %s in time. Check the port, and firewalls on the way", port)
	case err != nil:
		p.step("connect", false, connecting, "No connection: %v. Check that the other side listens on port %s and lets this service in", err, port)
	default:
		p.step("connect", true, connecting, "Connected to %s", conn.RemoteAddr())
	}
	return conn, err == nil
}

func (p *probe) handshake(ctx context.Context, h *Handler, conn net.Conn, host string) {
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if t, ok := h.env.Client.Transport.(*http.Transport); ok && t.TLSClientConfig != nil {
		settings = t.TLSClientConfig.Clone()
	}
	settings.ServerName = strings.TrimSuffix(host, ".")
	settings.NextProtos = []string{"h2", "http/1.1"}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	start := time.Now()
	c := tls.Client(conn, settings)
	err := c.HandshakeContext(ctx)
	took := time.Since(start)
	var record tls.RecordHeaderError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &record):
		p.step("tls", false, took, "The other side does not speak TLS on this port. Check scheme and port of the URL")
		return
	case errors.As(err, &certificate):
		p.step("tls", false, took, "The certificate is not accepted: %v. Its owner has to renew or mend it", certificate.Err)
		return
	case err != nil:
		p.step("tls", false, took, "No TLS handshake: %v", err)
		return
	}
	state := c.ConnectionState()
	leaf := state.PeerCertificates[0]
	now := time.Now()
	if h.env.Now != nil {
		now = h.env.Now()
	}
	warning := ""
	if leaf.NotAfter.Sub(now) < certificateSoon {
		warning = ": it has to be renewed soon"
	}
	p.step("tls", true, took, "%s; the certificate is valid until %s%s",
		tls.VersionName(state.Version), leaf.NotAfter.UTC().Format(time.DateOnly), warning)
}

// resolution listens to the dialer's own name resolution, which may be under way still when the dialer has given up.
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
