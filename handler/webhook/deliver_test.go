package webhook_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

func TestRequestOnTheWire(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, status(http.StatusAccepted, `{"queued":true}`, "X-Request-Id", "r-17", "Set-Cookie", "session=abcdef"))
	h := webhook.New(webhook.WithUserAgent("acme-reports/2"))
	req := handlertest.Request(t, h, webhook.Config{
		URL: r.URL + "/hook?token=hidden-token&tenant=acme-corp", Method: http.MethodPut,
		Headers:        map[string]string{"x-tenant": "acme"},
		SecretHeaders:  map[string]destination.Secret{"X-Second": destination.NewSecret("hidden-second")},
		Auth:           webhook.Bearer("hidden-bearer"),
		SigningSecrets: secrets(newSecret, oldSecret),
	}, payload.Bytes("Bericht Ä.csv", []byte("a,b\n1,2\n")))
	// An hour that is not UTC, and a fraction that ISO 8601 in seconds leaves out.
	at := time.Date(2026, 6, 21, 12, 0, 0, 999, time.FixedZone("CEST", 2*3600))
	env := handlertest.Env(t)
	env.Now = func() time.Time { return at }
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	result, err := h.Deliver(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	got := r.one(t)
	if got.method != http.MethodPut || got.uri != "/hook?token=hidden-token&tenant=acme-corp" || string(got.body) != "a,b\n1,2\n" || got.length != 8 {
		t.Errorf("came: %+v", got)
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	for name, want := range map[string]string{
		"User-Agent":           "acme-reports/2",
		"Content-Type":         "text/csv; charset=utf-8",
		"Content-Disposition":  "attachment; filename*=utf-8''Bericht%20%C3%84.csv",
		"X-Tenant":             "acme",
		"X-Second":             "hidden-second",
		"Authorization":        "Bearer hidden-bearer",
		"Idempotency-Key":      req.MessageID,
		"Webhook-Id":           req.MessageID,
		"Webhook-Timestamp":    timestamp,
		"X-Delivery-Timestamp": "2026-06-21T10:00:00Z",
		"X-Delivery-Topic":     req.Topic,
		"Traceparent":          req.TraceParent,
	} {
		if v := got.header.Values(name); !slices.Equal(v, []string{want}) {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	if v := got.header.Values("X-Idempotency-Key"); len(v) > 0 {
		t.Errorf("X-Idempotency-Key: %q on the wire", v)
	}
	if n := len(strings.Fields(got.header.Get("Webhook-Signature"))); n != 2 {
		t.Errorf("%d signatures, want one per secret", n)
	}
	for _, s := range []string{newSecret, oldSecret} {
		if err := webhook.Verify([]string{s}, got.header, got.body, webhook.Clock(env.Now)); err != nil {
			t.Errorf("the signature by %.10s: %v", s, err)
		}
	}

	x := result.Exchange
	if x.Method != http.MethodPut || x.URL != r.URL+"/hook?token=[redacted]&tenant=[redacted]" || x.StatusCode != http.StatusAccepted ||
		x.ResponseBody != `{"queued":true}` || x.Truncated || x.RemoteAddress != r.Listener.Addr().String() {
		t.Errorf("the exchange: %+v", x)
	}
	for _, name := range []string{"Authorization", "X-Second", "Webhook-Signature"} {
		if v := x.RequestHeaders[name]; !slices.Equal(v, []string{destination.Redacted}) {
			t.Errorf("%s is recorded as %q", name, v)
		}
	}
	if v := x.ResponseHeaders["Set-Cookie"]; !slices.Equal(v, []string{destination.Redacted}) {
		t.Errorf("Set-Cookie is recorded as %q", v)
	}
	if v := x.RequestHeaders["Webhook-Id"]; !slices.Equal(v, []string{req.MessageID}) {
		t.Errorf("Webhook-Id is recorded as %q", v)
	}
	if result.Reference.ID != "r-17" {
		t.Errorf("reference %+v", result.Reference)
	}
}

func TestHeadersThatCanBeChosen(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	_, err := deliver(t, webhook.Config{
		URL: r.URL, ContentType: "application/cloudevents+json", Method: http.MethodPatch, Unsigned: true,
		Headers:           map[string]string{"User-Agent": "mine", "Content-Disposition": "inline"},
		Auth:              webhook.APIKey("", "the-key"),
		IdempotencyHeader: "X-Message", TimestampHeader: "X-Sent-At",
	}, payload.JSON(1).As("one.json", ""), func(req *handler.Request) {
		req.MessageID, req.Topic, req.TraceParent = "m-1", "", ""
	})
	if err != nil {
		t.Fatal(err)
	}
	got := r.one(t)
	for name, want := range map[string]string{
		"Content-Type": "application/cloudevents+json", "User-Agent": "mine", "Content-Disposition": "inline",
		"X-Api-Key": "the-key", "X-Message": "m-1", "Webhook-Id": "m-1", "Idempotency-Key": "", "Webhook-Signature": "",
		"X-Delivery-Timestamp": "", "X-Delivery-Topic": "", "Traceparent": "",
	} {
		if v := got.header.Get(name); v != want {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	if _, err := time.Parse(time.RFC3339, got.header.Get("X-Sent-At")); err != nil {
		t.Error(err)
	}
	if got.method != http.MethodPatch {
		t.Error(got.method)
	}
}

func TestAuth(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		auth         webhook.Auth
		header, want string
	}{
		"none":             {webhook.Auth{}, "Authorization", ""},
		"api key":          {webhook.APIKey("X-Token", "k"), "X-Token", "k"},
		"api key as is":    {webhook.APIKey("Authorization", "Token k"), "Authorization", "Token k"},
		"bearer":           {webhook.Bearer("t"), "Authorization", "Bearer t"},
		"basic, RFC 7617":  {webhook.Basic("Aladdin", "open sesame"), "Authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
		"basic with UTF-8": {webhook.Basic("test", "123£"), "Authorization", "Basic dGVzdDoxMjPCow=="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t, nil)
			if _, err := deliver(t, webhook.Config{URL: r.URL, Auth: c.auth}, payload.JSON(1)); err != nil {
				t.Fatal(err)
			}
			if got := r.one(t).header.Get(c.header); got != c.want {
				t.Errorf("%s: %q, want %q", c.header, got, c.want)
			}
		})
	}
}

// A body without length is sent in chunks; signing has found the length, so that a signed one is
// not.
func TestUnknownSize(t *testing.T) {
	t.Parallel()
	for name, unsigned := range map[string]bool{"signed": false, "unsigned": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t, nil)
			content := handlertest.Content(t, payload.Bytes("", []byte("hello")))
			_, err := deliver(t, webhook.Config{URL: r.URL, Unsigned: unsigned}, payload.JSON(1), func(req *handler.Request) {
				req.Payload = payload.NewContent(payload.Info{Size: -1}, content.OpenAt)
			})
			if err != nil {
				t.Fatal(err)
			}
			got := r.one(t)
			if want := map[bool]int64{true: -1, false: 5}[unsigned]; string(got.body) != "hello" || got.length != want {
				t.Errorf("%q came with length %d, want %d", got.body, got.length, want)
			}
		})
	}
}

// What was signed must be what is sent.
func TestContentThatChangesBetweenSigningAndSending(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	_, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1), func(req *handler.Request) {
		first := true
		changing := opener(func() []byte {
			b := bytes.Repeat([]byte("a"), 2<<20)
			if !first {
				b[1<<20] = 'b'
			}
			first = false
			return b
		})
		req.Payload = payload.NewContent(payload.Info{Size: 2 << 20}, changing)
	})
	if e := handler.Classify(err); e == nil || e.Category != handler.Internal || !e.WillRetry() {
		t.Errorf("%v", err)
	}
}

func TestConnectionIsUsedAgain(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, status(http.StatusOK, strings.Repeat("x", 100_000)))
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{URL: r.URL}, payload.JSON(1))
	for range 5 {
		if _, err := h.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	remotes := map[string]bool{}
	for _, got := range r.requests() {
		remotes[got.remote] = true
	}
	if len(remotes) != 1 {
		t.Errorf("%d connections for 5 requests", len(remotes))
	}
}

// A kept connection that the server closes on the next request costs no attempt, whatever the
// idempotency header is called.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]string{"default": "", "renamed": "X-Message-Id"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var connections atomic.Int32
			address := rawServer(t, func(_ context.Context, c net.Conn) {
				connections.Add(1)
				readRequest(c)
				_, _ = io.ReadFull(c, make([]byte, 1))
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				readRequest(c)
			})
			h := webhook.New()
			req := handlertest.Request(t, h, webhook.Config{URL: address, IdempotencyHeader: header}, payload.JSON(1))
			for range 3 {
				if _, err := h.Deliver(t.Context(), req); err != nil {
					t.Fatal(err)
				}
			}
			if n := connections.Load(); n != 3 {
				t.Errorf("%d connections, want one for each attempt", n)
			}
		})
	}
}

func TestHTTP2(t *testing.T) {
	t.Parallel()
	s, env := tlsReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
		}
	})
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{URL: s.URL}, payload.Bytes("large", make([]byte, 3<<20)))
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

// tlsReceiver is a server with HTTP/2, and an environment that trusts it.
func tlsReceiver(t testing.TB, answer http.HandlerFunc) (*httptest.Server, handler.Env) {
	t.Helper()
	s := httptest.NewUnstartedServer(answer)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = quiet
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	env := handlertest.Env(t)
	transport := env.Client.Transport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	env.Client = &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
	return s, env
}

func TestUnopenedAndMisused(t *testing.T) {
	t.Parallel()
	req := &handler.Request{Config: webhook.Config{URL: "https://example.com"}, Payload: handlertest.Content(t, payload.JSON(1))}
	_, err := webhook.New().Deliver(t.Context(), req)
	if e := handler.Classify(err); e == nil || e.Category != handler.Internal {
		t.Errorf("not opened: %v", err)
	}
	h := webhook.New()
	handlertest.Open(t, h)
	if _, err := h.Deliver(t.Context(), req); err == nil || !strings.Contains(err.Error(), "signing secret") {
		t.Errorf("no secret: %v", err)
	}
	req.Config = map[string]string{}
	if _, err := h.Deliver(t.Context(), req); handler.Classify(err).Category != handler.Configuration {
		t.Errorf("foreign config: %v", err)
	}
	if _, err := h.Complete(17, nil); err == nil {
		t.Error("Complete takes a foreign config")
	}
	err = webhook.New(nil, webhook.WithUserAgent("a\nb")).Open(handler.Env{})
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not every problem is reported: %v", err)
	}
}

func TestHeaderRecordIsComplete(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	result, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1))
	if err != nil {
		t.Fatal(err)
	}
	sent := r.one(t).header
	for _, name := range []string{"Accept-Encoding", "Content-Length"} {
		sent.Del(name) // HTTP's own
	}
	recorded := slices.Sorted(maps.Keys(result.Exchange.RequestHeaders))
	if want := slices.Sorted(maps.Keys(sent)); !slices.Equal(recorded, want) {
		t.Errorf("recorded %q, sent %q", recorded, want)
	}
}
