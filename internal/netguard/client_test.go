package netguard_test

import (
	"compress/gzip"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/deliverykit/delivery/internal/netguard"
)

func client(t *testing.T, p netguard.Policy) *http.Client {
	t.Helper()
	g := netguard.New(p)
	t.Cleanup(g.CloseIdle)
	return g.Client()
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// forbidden serves what nothing may ask for.
func forbidden(t *testing.T) *httptest.Server {
	return serve(t, func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a request got through: %s %s", r.Method, r.URL)
	})
}

func TestClientRefusesLoopback(t *testing.T) {
	t.Parallel()
	s := forbidden(t)
	_, err := client(t, netguard.Policy{}).Get(s.URL)
	requireBlocked(t, s.URL, err)
}

func TestClientReturnsRedirects(t *testing.T) {
	t.Parallel()
	elsewhere := forbidden(t)
	for _, code := range []int{301, 302, 303, 307, 308} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, code) })
		resp, err := client(t, netguard.Policy{Loopback: true}).Post(s.URL, "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != code {
			t.Errorf("got status %d, want the redirect %d itself", resp.StatusCode, code)
		}
	}
}

// Not parallel: it sets the environment. net/http reads it once per process,
// so http.ProxyFromEnvironment at the end shows that it was set in time.
func TestClientIgnoresProxyEnvironment(t *testing.T) {
	proxy := forbidden(t)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		t.Setenv(name, proxy.URL)
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")

	// The environment is not consulted for loopback, so the target is
	// something else, and refused before anything is sent.
	_, err := client(t, netguard.Policy{Loopback: true}).Get("http://192.0.2.1/")
	if blocked := asBlocked(t, "the target", err); blocked.Address != "192.0.2.1" {
		t.Errorf("refused %q, want the target", blocked.Address)
	}

	req := httptest.NewRequest(http.MethodGet, "http://192.0.2.1/", http.NoBody)
	if u, err := http.ProxyFromEnvironment(req); err != nil || u == nil {
		t.Fatalf("the environment names no proxy, the test shows nothing: %v, %v", u, err)
	}
}

func TestClientProxy(t *testing.T) {
	t.Parallel()
	var seen atomic.Value
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.URL.String())
		w.WriteHeader(http.StatusAccepted)
	})
	proxyURL, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := netguard.Policy{Loopback: true, Proxy: http.ProxyURL(proxyURL)}

	resp, _ := get(t, client(t, through), "http://public.example/path")
	if resp.StatusCode != http.StatusAccepted || seen.Load() != "http://public.example/path" {
		t.Errorf("got status %d, and the proxy saw %v", resp.StatusCode, seen.Load())
	}

	seen.Store("nothing")
	for _, target := range []string{"http://10.0.0.5/", "http://vault.internal/", "http://169.254.169.254/", "https://0x7f.1/"} {
		_, err := client(t, through).Get(target)
		requireBlocked(t, target, err)
	}
	through.Loopback = false
	_, err = client(t, through).Get("http://public.example/path")
	requireBlocked(t, "the proxy's own address", err)
	if got := seen.Load(); got != "nothing" {
		t.Errorf("the proxy saw %v", got)
	}
}

func tlsServer(t *testing.T, maxVersion uint16) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	s.EnableHTTP2 = maxVersion >= tls.VersionTLS12 // which HTTP/2 asks for by itself
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: maxVersion}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// trusting gives the client the server's certificate and leaves the rest.
func trusting(t *testing.T, c *http.Client, s *httptest.Server) *http.Client {
	t.Helper()
	transport := c.Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.RootCAs = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	c.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

func TestClientTLS(t *testing.T) {
	t.Parallel()
	modern, old := tlsServer(t, tls.VersionTLS13), tlsServer(t, tls.VersionTLS11)

	if _, proto := get(
		t, trusting(t, client(t, netguard.Policy{Loopback: true}), modern), modern.URL,
	); proto != "HTTP/2.0" {
		t.Errorf("spoke %s, want HTTP/2.0", proto)
	}
	if _, err := client(t, netguard.Policy{Loopback: true}).Get(modern.URL); err == nil {
		t.Error("an unknown certificate was trusted")
	}
	if _, err := trusting(t, client(t, netguard.Policy{Loopback: true}), old).Get(old.URL); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	_, err := trusting(t, client(t, netguard.Policy{}), modern).Get(modern.URL)
	requireBlocked(t, "over TLS", err)
}

func TestClientLeavesCompressionAlone(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "" {
			t.Errorf("asked for %q", got)
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(make([]byte, 1<<20))
		_ = z.Close()
	})
	resp, body := get(t, client(t, netguard.Policy{Loopback: true}), s.URL)
	if len(body) > 1<<14 || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("got %d bytes with encoding %q, want what was sent", len(body), resp.Header.Get("Content-Encoding"))
	}
}

func TestClientBoundsHeaders(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Large", strings.Repeat("x", 128<<10))
	})
	if _, err := client(t, netguard.Policy{Loopback: true}).Get(s.URL); err == nil {
		t.Error("128 KiB of headers were taken")
	}
}

func TestClientsShareThePool(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	g := netguard.New(netguard.Policy{Loopback: true})
	_, first := get(t, g.Client(), s.URL)
	_, second := get(t, g.Client(), s.URL)
	if first != second {
		t.Errorf("the second client dialled anew: %s, %s", first, second)
	}
	g.CloseIdle()
	_, third := get(t, g.Client(), s.URL)
	if third == first {
		t.Error("CloseIdle left the connection open")
	}
	g.CloseIdle()
}

func TestClientMayBeChanged(t *testing.T) {
	t.Parallel()
	g := netguard.New(netguard.Policy{})
	changed := errors.New("changed")
	g.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return changed }
	if err := g.Client().CheckRedirect(nil, nil); !errors.Is(err, http.ErrUseLastResponse) {
		t.Errorf("a change to one client shows in another: %v", err)
	}
}
