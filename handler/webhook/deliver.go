package webhook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/redact"
)

// answerTime is how long the body of an answer may take once its header has come: the status has
// decided by then.
const answerTime = 5 * time.Second

// maxDrain is how much of an answer is read beyond the excerpt, so that its connection can be used
// again.
const maxDrain = 256 << 10

// headerTest marks what is no event: a sample, or the request of a connection test.
const headerTest = "X-Delivery-Test"

// attempt is one request and what is known of it. A second is made only where an access token that
// was kept is refused.
type attempt struct {
	config Config
	req    *handler.Request
	url    *url.URL
	redact *redact.Redactor
	start  time.Time
	body   *body

	tokens        *tokens
	authorization string // with an access token
	fresh         bool   // it was got for this attempt

	mu     sync.Mutex // guards what the transport's goroutines report
	remote string
	sent   bool
}

// Deliver implements handler.Handler.
func (h *Handler) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	if h.env.Client == nil {
		return nil, handler.Fail(handler.Internal, errors.New("webhook: the handler was not opened"))
	}
	a, err := newAttempt(config, req)
	if err != nil {
		return nil, handler.Fail(handler.Configuration, err)
	}
	return a.deliver(ctx, h)
}

func newAttempt(config Config, req *handler.Request) (*attempt, error) {
	u, err := url.Parse(config.URL)
	if err != nil {
		return nil, errors.New("webhook: the URL is malformed")
	}
	return &attempt{config: config, req: req, url: u, redact: newRedactor(config, u), start: time.Now()}, nil
}

// id is under which something is kept for the destination.
func (a *attempt) id() string {
	if a.req.Destination == nil {
		return ""
	}
	return a.req.Destination.ID
}

func (a *attempt) deliver(ctx context.Context, h *Handler) (*handler.Result, error) {
	at := h.now().UTC()
	keys, err := a.config.keys(at)
	if err != nil {
		return nil, handler.Fail(
			handler.Configuration, fmt.Errorf("%w; create or rotate the destination's signing secret", err),
		)
	}
	if err := a.authorize(ctx, h, ""); err != nil {
		return nil, err
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	var sign *signer
	if len(keys) > 0 {
		sign = newSigner(keys, a.req.MessageID, timestamp)
	}
	if a.body, err = newBody(ctx, a.req, sign); err != nil {
		return nil, a.failed(ctx, err)
	}
	header := http.Header{}
	a.headers(header, h.userAgent, at)
	header.Set(headerTimestamp, timestamp)
	if sign != nil {
		signature := sign.signature()
		header.Set(headerSignature, signature)
		a.redact.Add(signature)
	}
	transport, release, err := h.transport(ctx, a.config.TLS, a.id())
	if err != nil {
		return nil, err
	}
	defer release()

	result, err := a.exchange(ctx, transport, header)
	var refused *handler.Error
	if errors.As(err, &refused) && refused.StatusCode == http.StatusUnauthorized && a.authorization != "" && !a.fresh {
		// Revoked before its end: with a new one it may go.
		if err := a.authorize(ctx, h, a.authorization); err != nil {
			return result, err
		}
		return a.exchange(ctx, transport, header)
	}
	return result, err
}

// exchange sends the request and reads the answer.
func (a *attempt) exchange(
	outer context.Context, transport http.RoundTripper, header http.Header,
) (*handler.Result, error) {
	// Ending ctx makes the transport let go of the body.
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	hr, err := a.request(ctx)
	if err != nil {
		return nil, a.failed(outer, err)
	}
	hr.Header = header.Clone()
	if a.authorization != "" {
		hr.Header.Set("Authorization", a.authorization)
	}
	record := &handler.Exchange{
		Method: hr.Method, URL: redact.URL(a.url),
		RequestHeaders: a.redact.Request(hr.Header, a.config.credentialHeaders()...),
	}
	result := &handler.Result{Exchange: record}

	// Without the client around it, which would read cookies, and the Location of a redirect.
	resp, err := transport.RoundTrip(hr)
	unread := a.body.failure()
	record.RemoteAddress = a.remoteAddress()
	if err == nil {
		timer := time.AfterFunc(answerTime, cancel)
		a.answer(resp, record)
		timer.Stop()
	}
	cancel()
	a.body.wait()

	if err != nil {
		return result, a.failed(outer, cmp.Or(unread, err))
	}
	if err := a.refused(resp, record.ResponseBody); err != nil {
		return result, err
	}
	if unread != nil {
		return result, a.failed(outer, unread) // an answer to half a payload
	}
	if a.body.data != nil {
		a.req.Progress(a.body.size)
	}
	result.Reference = a.reference(resp)
	return result, nil
}

func (a *attempt) request(ctx context.Context) (*http.Request, error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.remote, a.sent = info.Conn.RemoteAddr().String(), false
		},
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.sent = info.Err == nil
		},
	})
	content, err := a.body.get(ctx)
	if err != nil {
		return nil, err
	}
	hr := &http.Request{
		Method: a.config.method(), URL: a.url, Host: a.url.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body:          content,
		ContentLength: a.body.size,
		// With it and an idempotency key, the transport tries again on another connection when one
		// that it kept is closed in place of an answer.
		GetBody: func() (io.ReadCloser, error) { return a.body.get(ctx) },
	}
	return hr.WithContext(ctx), nil
}

func (a *attempt) headers(h http.Header, userAgent string, at time.Time) {
	info := a.req.Payload.Info()
	h.Set("User-Agent", userAgent)
	if info.Name != "" {
		if v := mime.FormatMediaType("attachment", map[string]string{"filename": info.Name}); v != "" {
			h.Set("Content-Disposition", v)
		}
	}
	for name, value := range a.config.Headers {
		h.Set(name, value)
	}
	for name, value := range a.config.SecretHeaders {
		h.Set(name, value.Reveal())
	}
	if t := cmp.Or(a.config.ContentType, info.ContentType); t != "" {
		h.Set("Content-Type", t)
	}
	if a.req.Topic != "" && validValue(a.req.Topic) {
		h.Set("X-Delivery-Topic", a.req.Topic)
	}
	if a.req.Test {
		h.Set(headerTest, "true")
	}
	if a.req.TraceParent != "" {
		h.Set("Traceparent", a.req.TraceParent)
	}
	a.config.Auth.set(h)
	if _, ok := h["X-Idempotency-Key"]; !ok {
		h["X-Idempotency-Key"] = nil // sends nothing, and tells http.Transport that it may repeat the request
	}
	h.Set(headerID, a.req.MessageID)
	h.Set(a.config.idempotencyHeader(), a.req.MessageID)
	h.Set(a.config.timestampHeader(), at.Format(time.RFC3339))
}

// answer reads what is kept of the response, and some more, into exchange.
func (a *attempt) answer(resp *http.Response, exchange *handler.Exchange) {
	defer resp.Body.Close()
	exchange.StatusCode = resp.StatusCode
	exchange.ResponseHeaders = a.redact.Response(resp.Header)
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return // its body is the bare connection, which does not end with the context
	}
	limit := a.config.maxResponse()
	// With what a secret at the end may need to be recognised.
	b, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit+a.redact.Longest())))
	rest := int64(0)
	if err == nil {
		rest, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
	}
	text := a.redact.Excerpt(b, err == nil && rest == 0)
	exchange.ResponseBody = redact.Cut(text, limit)
	exchange.Truncated = len(exchange.ResponseBody) < len(text) || err != nil || rest > 0
}

// reference takes the other side's own name for what it took from the headers that are in use for
// it.
func (a *attempt) reference(resp *http.Response) handler.Reference {
	var ref handler.Reference
	for _, name := range []string{"X-Request-Id", "Request-Id", "X-Correlation-Id", "X-Amzn-Requestid"} {
		if id := resp.Header.Get(name); id != "" && ref.ID == "" {
			ref.ID = redact.Cut(a.redact.Text(id), maxReference)
		}
	}
	if location := resp.Header.Get("Location"); location != "" && resp.StatusCode == http.StatusCreated {
		if u, err := a.url.Parse(location); err == nil {
			ref.URL = redact.Cut(a.redact.Text(redact.URL(u)), maxURL)
		}
	}
	return ref
}

const maxReference = 256

func (a *attempt) remoteAddress() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.remote
}
