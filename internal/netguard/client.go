package netguard

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"time"
)

// The client's settings. There is no limit on connections per host: the
// limits of a destination bound what is in flight. Nor is there one on those
// that are idle, but for all hosts together: what 256 requests at once have
// opened would else be closed and dialled again all the time.
const (
	tlsHandshakeTimeout = 10 * time.Second
	idleConnTimeout     = 90 * time.Second
	maxIdleConns        = 1024

	// net/http would take 10 MiB of headers from anyone.
	maxResponseHeaderBytes = 64 << 10

	// A silent HTTP/2 connection is probed, or requests would go on being
	// multiplexed onto a peer that vanished.
	http2PingAfter   = 30 * time.Second
	http2PingTimeout = 15 * time.Second
)

// newTransport leaves Proxy nil, which is what keeps the environment out.
func newTransport(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    tlsHandshakeTimeout,
		ForceAttemptHTTP2:      true, // else off, with a dialer of our own
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: http2PingAfter, PingTimeout: http2PingTimeout},
		MaxIdleConns:           maxIdleConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleConnTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
		// A few KB of gzip can expand to gigabytes, and a recorded response
		// should be what the other side sent. Who wants compression asks for
		// it and bounds what comes out.
		DisableCompression: true,
	}
}

func (g *Guard) proxy(r *http.Request) (*url.URL, error) {
	if err := g.CheckHost(r.URL.Hostname()); err != nil {
		return nil, err
	}
	return g.policy.Proxy(r)
}

// Client gives an HTTP client that dials through the guard: HTTP/1.1 and
// HTTP/2, TLS 1.2 at least, at most 64 KiB of response headers, no cookies, no
// transparent decompression. A redirect is not followed but returned, so that
// a destination is only ever where it was configured.
//
// The client has no timeout beyond dial and TLS handshake, 10 s each: requests
// carry a context with a deadline. All clients of a guard share one pool of
// connections.
func (g *Guard) Client() *http.Client {
	return &http.Client{
		Transport: g.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}

// CloseIdle closes the connections that no request uses. The guard stays
// usable.
func (g *Guard) CloseIdle() {
	g.transport.CloseIdleConnections()
}
