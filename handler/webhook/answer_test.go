package webhook_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

func opener(content func() []byte) payload.OpenFunc {
	return func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content()[offset:])), nil
	}
}

func TestStatusClassification(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]handler.Error{
		200: {}, 201: {}, 202: {}, 204: {}, 299: {},
		301: {Category: handler.Configuration}, 302: {Category: handler.Configuration}, 304: {Category: handler.Configuration},
		308: {Category: handler.Configuration},
		400: {Category: handler.Validation}, 401: {Category: handler.Authentication}, 403: {Category: handler.Authentication},
		404: {Category: handler.Configuration}, 405: {Category: handler.Configuration}, 408: {Category: handler.Timeout},
		409: {Category: handler.Conflict}, 410: {Category: handler.Configuration, Verdict: handler.Disable},
		413: {Category: handler.Validation}, 422: {Category: handler.Validation}, 425: {Category: handler.RateLimit},
		429: {Category: handler.RateLimit}, 499: {Category: handler.Validation},
		500: {Category: handler.Remote}, 501: {Category: handler.Configuration}, 502: {Category: handler.Remote},
		503: {Category: handler.Remote}, 504: {Category: handler.Timeout}, 507: {Category: handler.Capacity}, 599: {Category: handler.Remote},
	} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t, status(code, ""))
			result, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1))
			if result.Exchange.StatusCode != code {
				t.Errorf("the record says %d", result.Exchange.StatusCode)
			}
			if code < 300 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			e := handler.Classify(err)
			if e == nil || e.Category != want.Category || e.Verdict != want.Verdict || e.StatusCode != code {
				t.Errorf("%+v, want %+v", e, want)
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, status(503, "  down for\n\tmaintenance\x00 until "+strings.Repeat("later ", 100)))
	_, err := deliver(t, webhook.Config{URL: r.URL + "/hook?token=hidden-token"}, payload.JSON(1))
	want := "webhook: POST " + r.URL + "/hook answered 503 Service Unavailable: down for maintenance"
	if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "...") || len(err.Error()) > 400 {
		t.Errorf("%v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{
		"120":                           2 * time.Minute,
		"Sun, 21 Jun 2026 10:10:00 GMT": 10 * time.Minute,
		"soon":                          0,
		"-5":                            0,
	} {
		r := newReceiver(t, status(429, "", "Retry-After", value, "Date", "Sun, 21 Jun 2026 10:00:00 GMT"))
		_, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1))
		if e := handler.Classify(err); e == nil || e.RetryAfter != want {
			t.Errorf("%s: %+v, want %s", value, e, want)
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	elsewhere := newReceiver(t, nil)
	for _, location := range []string{elsewhere.URL + "/new?token=their-token", "http://user:their-token@" + elsewhere.Listener.Addr().String() + "/new"} {
		r := newReceiver(t, status(http.StatusPermanentRedirect, "", "Location", location))
		result, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1))
		if err == nil || !strings.Contains(err.Error(), "leads to "+elsewhere.URL+"/new:") || strings.Contains(err.Error(), "their-token") {
			t.Errorf("%v", err)
		}
		if v := result.Exchange.ResponseHeaders["Location"][0]; strings.Contains(v, "their-token") {
			t.Errorf("the record has %s", v)
		}
	}
	r := newReceiver(t, status(http.StatusFound, "", "Location", "http://[broken?their-token"))
	_, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1))
	if e := handler.Classify(err); e == nil || e.StatusCode != http.StatusFound || strings.Contains(e.Error(), "their-token") {
		t.Errorf("a malformed Location: %v", err)
	}
	if n := len(elsewhere.requests()); n > 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

func TestCreatedLocationIsTheReference(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, status(http.StatusCreated, "", "Location", "/events/7?sig=their-token"))
	result, err := deliver(t, webhook.Config{URL: r.URL + "/in"}, payload.JSON(1))
	if err != nil || result.Reference.URL != r.URL+"/events/7?sig=[redacted]" {
		t.Errorf("%+v, %v", result.Reference, err)
	}
}

func TestResponseIsCut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 100_000)
	for _, c := range []struct {
		limit, want int
		body        string
		cut         bool
	}{
		{0, 4096, long, true},
		{-1, 0, long, true},
		{-1, 0, "", false},
		{5, 4, long, true}, // between two characters
		{5, 5, "hello", false},
		{5, 5, "hello!", true},
		{64 << 10, 64 << 10, long, true},
	} {
		r := newReceiver(t, status(200, c.body))
		result, err := deliver(t, webhook.Config{URL: r.URL, MaxResponse: c.limit}, payload.JSON(1))
		if err != nil {
			t.Fatal(err)
		}
		x := result.Exchange
		if len(x.ResponseBody) != c.want || x.Truncated != c.cut || !utf8.ValidString(x.ResponseBody) {
			t.Errorf("limit %d: %d bytes, truncated %t; want %d, %t", c.limit, len(x.ResponseBody), x.Truncated, c.want, c.cut)
		}
	}
}

// A secret that the cap would cut in two must not show its first half.
func TestEchoedSecretAtTheCap(t *testing.T) {
	t.Parallel()
	const token = "tok-0123456789-abcdefghij"
	for pad := range len(token) + 2 {
		r := newReceiver(t, status(400, strings.Repeat(".", 100-pad)+token+strings.Repeat("-", 10_000)))
		result, err := deliver(t, webhook.Config{URL: r.URL, MaxResponse: 100, Auth: webhook.Bearer(token)}, payload.JSON(1))
		if text := result.Exchange.ResponseBody + err.Error(); strings.Contains(text, token[:4]) {
			t.Errorf("%d before the cap: %s", pad, text)
		}
	}
}

// What is redacted makes the text shorter, so that a half at the end of what was read moves below
// the cap.
func TestEchoedSecretMany(t *testing.T) {
	t.Parallel()
	const token = "tok-0123456789-abcdefghij"
	for pad := range len(token) {
		r := newReceiver(t, status(400, strings.Repeat(".", pad)+strings.Repeat(token, 1000)))
		result, err := deliver(t, webhook.Config{URL: r.URL, MaxResponse: 200, Auth: webhook.Bearer(token)}, payload.JSON(1))
		if text := strings.ReplaceAll(result.Exchange.ResponseBody+err.Error(), destination.Redacted, ""); strings.Contains(text, token[:4]) {
			t.Errorf("%d before the cap: %s", pad, text)
		}
	}
}

func TestEchoedQueryAndEscapedSecrets(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, status(400, `{"uri":"/?token=query-canary","auth":"Bearer a\/b\u0026c-canary","html":"a/b&amp;c-canary"}`))
	result, err := deliver(t, webhook.Config{URL: r.URL + "?token=query-canary&bare-canary", Auth: webhook.Bearer("a/b&c-canary")}, payload.JSON(1))
	if text := result.Exchange.ResponseBody + err.Error() + result.Exchange.URL; strings.Contains(text, "canary") {
		t.Errorf("shown: %s", text)
	}
}

// An answer whose body never ends is an answer all the same: its status has decided.
func TestBodyThatHangs(t *testing.T) {
	t.Parallel()
	address := rawServer(t, func(ctx context.Context, c net.Conn) {
		readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthanks")
		<-ctx.Done()
	})
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{URL: address}, payload.JSON(1))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the attempt's own, before the handler's patience
	defer cancel()
	result, err := h.Deliver(ctx, req)
	if err != nil || result.Exchange.ResponseBody != "" && result.Exchange.ResponseBody != "thanks" || !result.Exchange.Truncated {
		t.Errorf("%+v, %v", result, err)
	}
}

// 101 hands over a bare connection, which no context ends.
func TestSwitchingProtocols(t *testing.T) {
	t.Parallel()
	address := rawServer(t, func(ctx context.Context, c net.Conn) {
		readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
		<-ctx.Done()
	})
	_, err := deliver(t, webhook.Config{URL: address}, payload.JSON(1))
	if e := handler.Classify(err); e == nil || e.StatusCode != http.StatusSwitchingProtocols || e.Category != handler.Configuration {
		t.Errorf("%v", err)
	}
}

// An answer that comes before the body was taken, as to what is too large, ends the attempt.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	address := rawServer(t, func(ctx context.Context, c net.Conn) {
		readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		<-ctx.Done()
	})
	_, err := deliver(t, webhook.Config{URL: address}, payload.Bytes("large", make([]byte, 8<<20)))
	if e := handler.Classify(err); e == nil || e.StatusCode != http.StatusRequestEntityTooLarge || e.Category != handler.Validation {
		t.Errorf("%v", err)
	}
}

// roundTrip is what an http.Transport may do, done when a test needs it.
type roundTrip func(r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// through makes one attempt with that transport, and a large payload that opens as told.
func through(t *testing.T, transport roundTrip, open payload.OpenFunc) (*handler.Result, error) {
	t.Helper()
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{URL: "https://example.com", Unsigned: true}, payload.JSON(1))
	req.Payload = payload.NewContent(payload.Info{Size: 2 << 20}, open)
	env := handlertest.Env(t)
	env.Client = &http.Client{Transport: transport}
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	return h.Deliver(t.Context(), req)
}

// A transport may close the body after it has returned. The attempt must not end before: what the
// payload is read from ends with it.
func TestNothingReadsThePayloadAfterTheAttempt(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{})
	_, err := through(t, func(r *http.Request) (*http.Response, error) {
		go func() {
			<-r.Context().Done()
			timer := time.NewTimer(50 * time.Millisecond)
			<-timer.C
			_ = r.Body.Close()
		}()
		return nil, io.ErrUnexpectedEOF
	}, func(context.Context, int64) (io.ReadCloser, error) {
		return closing{bytes.NewReader(nil), func() { close(closed) }}, nil
	})
	select {
	case <-closed:
	default:
		t.Error("the payload is open after the attempt")
	}
	if e := handler.Classify(err); e == nil || e.Category != handler.Network {
		t.Errorf("%v", err)
	}
}

// A payload that breaks off is our failure, whatever the transport or the other side make of it.
func TestPayloadThatBreaksOff(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(r *http.Request) (*http.Response, error){
		"broken connection": func(*http.Request) (*http.Response, error) { return nil, io.ErrClosedPipe },
		"answered all the same": func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
		},
	} {
		_, err := through(t, func(r *http.Request) (*http.Response, error) {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
			return answer(r)
		}, func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(brokenReader{}), nil
		})
		if e := handler.Classify(err); e == nil || e.Category != handler.Internal || !e.WillRetry() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type closing struct {
	io.Reader
	close func()
}

func (c closing) Close() error {
	c.close()
	return nil
}

type blocked struct{}

func (blocked) Error() string   { return "netguard: address 10.0.0.1 is private" }
func (blocked) Permanent() bool { return true }

func TestForbiddenAddress(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{URL: "https://internal.example.com/x?token=hidden-token"}, payload.JSON(1))
	env := handlertest.Env(t)
	dial := func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: blocked{}}
	}
	env.Dial = dial
	env.Client = &http.Client{Transport: &http.Transport{DialContext: dial}}
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	_, err := h.Deliver(t.Context(), req)
	e := handler.Classify(err)
	if e == nil || e.Category != handler.Configuration || e.WillRetry() || !errors.As(err, &blocked{}) || strings.Contains(err.Error(), "hidden-token") {
		t.Errorf("%v", err)
	}
	report, err := h.Test(t.Context(), &handler.TestRequest{Config: req.Config})
	if err != nil || report.OK || !strings.Contains(report.Steps[0].Finding, "may not connect") {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestPayloadThatIsGone(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	_, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1), func(req *handler.Request) {
		req.Payload = payload.NewContent(payload.Info{Size: 2 << 20}, func(context.Context, int64) (io.ReadCloser, error) {
			return nil, &destination.FieldError{Message: "the store is away"}
		})
	})
	if e := handler.Classify(err); e == nil || e.Category != handler.Internal || !strings.Contains(err.Error(), "the store is away") {
		t.Errorf("%v", err)
	}
	if n := len(r.requests()); n > 0 {
		t.Errorf("%d requests came", n)
	}
}
