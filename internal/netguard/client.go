package netguard

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"time"
)

// The client's settings. Connections per host are not limited, because the
// limits of a destination bound the requests in flight. Idle connections are
// limited only for all hosts together. With a limit per host, the connections
// of 256 requests at once would be closed and dialled again all the time.
const (
	tlsHandshakeTimeout = 10 * time.Second
	idleConnTimeout     = 90 * time.Second
	maxIdleConns        = 1024

	// net/http alone would accept 10 MiB of headers from anyone.
	maxResponseHeaderBytes = 64 << 10

	// A silent HTTP/2 connection is probed. Otherwise requests would still be
	// multiplexed onto a peer that has vanished.
	http2PingAfter   = 30 * time.Second
	http2PingTimeout = 15 * time.Second
)

// newTransport leaves Proxy nil, so that the environment has no influence.
func newTransport(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    tlsHandshakeTimeout,
		ForceAttemptHTTP2:      true, // it is off by default with a custom dialer
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: http2PingAfter, PingTimeout: http2PingTimeout},
		MaxIdleConns:           maxIdleConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleConnTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
		// A few KB of gzip can expand to gigabytes, and a recorded response
		// should be exactly as the other side sent it. A handler that wants
		// compression asks for it and limits the result.
		DisableCompression: true,
	}
}

func (g *Guard) proxy(r *http.Request) (*url.URL, error) {
	if err := g.CheckHost(r.URL.Hostname()); err != nil {
		return nil, err
	}
	return g.policy.Proxy(r)
}

// Client returns an HTTP client that dials through the guard: HTTP/1.1 and
// HTTP/2, TLS 1.2 at least, at most 64 KiB of response headers, no cookies, no
// transparent decompression. It returns a redirect instead of following it, so
// a destination is always where it was configured.
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

// CloseIdle closes unused connections. The guard stays usable.
func (g *Guard) CloseIdle() {
	g.transport.CloseIdleConnections()
}
