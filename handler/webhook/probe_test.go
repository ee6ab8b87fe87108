package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

// steps shows a report as "connect ok, tls FAILED: finding".
func steps(r *destination.TestReport) string {
	var parts []string
	for _, s := range r.Steps {
		outcome := "ok"
		if !s.OK {
			outcome = "FAILED"
		}
		parts = append(parts, s.Name+" "+outcome+": "+s.Finding)
	}
	return strings.Join(parts, "\n")
}

func probe(t *testing.T, env handler.Env, url string) *destination.TestReport {
	t.Helper()
	return probeConfig(t, env, webhook.Config{URL: url})
}

func probeConfig(t *testing.T, env handler.Env, c webhook.Config) *destination.TestReport {
	t.Helper()
	h := webhook.New()
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	report, err := h.Test(t.Context(), &handler.TestRequest{Config: c})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestProbe(t *testing.T) {
	t.Parallel()
	r := &receiver{}
	s, env := tlsReceiver(t, r.record(nil))
	port := s.URL[strings.LastIndex(s.URL, ":"):]

	report := probe(t, env, s.URL+"/hook?token=query-canary")
	if !report.OK || len(report.Steps) != 3 || report.Latency <= 0 || len(report.Warnings) != 0 ||
		!strings.Contains(steps(report), "TLS 1.3; the certificate is valid until "+s.Certificate().NotAfter.Format(time.DateOnly)) ||
		!strings.Contains(steps(report), "request ok: The other side answered 200 to a test request") {
		t.Errorf("a working one:\n%s", steps(report))
	}
	got := r.one(t)
	var event struct {
		Type      string
		Timestamp time.Time
		Data      struct{ Message string }
	}
	if err := json.Unmarshal(got.body, &event); err != nil || event.Type != "delivery.test" || event.Timestamp.IsZero() || event.Data.Message == "" {
		t.Errorf("%v: %s", err, got.body)
	}
	if got.header.Get("X-Delivery-Test") != "true" || got.header.Get("X-Delivery-Topic") != "delivery.test" || got.header.Get("Webhook-Signature") == "" ||
		got.header.Get("Webhook-Id") == "" || got.header.Get("Content-Type") != "application/json" || got.uri != "/hook?token=query-canary" {
		t.Errorf("%s %v", got.uri, got.header)
	}

	soon := env
	soon.Now = func() time.Time { return s.Certificate().NotAfter.Add(-24 * time.Hour) }
	if report := probe(t, soon, s.URL); !report.OK || len(report.Warnings) != 1 || report.Warnings[0].Code != "certificate_expires" || !report.Warnings[0].Until.Equal(s.Certificate().NotAfter) {
		t.Errorf("a certificate that expires: %+v\n%s", report.Warnings, steps(report))
	}
	if report := probe(t, handlertest.Env(t), s.URL); report.OK || !strings.Contains(steps(report), "tls FAILED: The certificate is not accepted") {
		t.Errorf("an unknown authority:\n%s", steps(report))
	}
	if report := probe(t, env, "https://localhost"+port); report.OK || !strings.Contains(steps(report), "resolve ok: localhost is ") ||
		!strings.Contains(steps(report), "tls FAILED: The certificate is not accepted") {
		t.Errorf("the certificate of another host:\n%s", steps(report))
	}
	if report := probe(t, unresolving(env), "https://no-such-host.invalid"); report.OK || !strings.Contains(steps(report), "resolve FAILED") {
		t.Errorf("an unknown host:\n%s", steps(report))
	}
	if report := probe(t, env, "http://"+refusedAddress(t)); report.OK || !strings.Contains(steps(report), "connect FAILED") {
		t.Errorf("nobody there:\n%s", steps(report))
	}
	plain := newReceiver(t, nil)
	if report := probe(t, env, plain.URL); !report.OK || len(report.Steps) != 2 {
		t.Errorf("plain http:\n%s", steps(report))
	}
	if report := probe(t, env, "https"+plain.URL[len("http"):]); report.OK || !strings.Contains(steps(report), "does not speak TLS") {
		t.Errorf("plain http where TLS is expected:\n%s", steps(report))
	}
	if _, err := webhook.New().Test(t.Context(), &handler.TestRequest{Config: webhook.Config{}}); err == nil {
		t.Error("a handler that is not open tests")
	}
	if len(plain.requests()) != 1 {
		t.Errorf("%d requests came over plain http", len(plain.requests()))
	}
}

func TestProbeOfAnAnswer(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]string{
		http.StatusNoContent:           "request ok",
		http.StatusUnauthorized:        "authenticate FAILED",
		http.StatusForbidden:           "made for it alone",
		http.StatusNotFound:            "Check the path",
		http.StatusMethodNotAllowed:    "Check the method",
		http.StatusUnprocessableEntity: "let it answer 2xx",
		http.StatusInternalServerError: "its log should tell why",
		http.StatusMovedPermanently:    "make it the destination's URL",
	} {
		report := probe(t, handlertest.Env(t), newReceiver(t, status(code, "an answer", "Location", "https://elsewhere.example/")).URL)
		if report.OK != (code < 300) || !strings.Contains(steps(report), want) {
			t.Errorf("%d: %s", code, steps(report))
		}
	}
}

// Who never answers is reported within the time that the caller gives.
func TestProbeIsBounded(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	handlertest.Open(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	url := rawServer(t, func(ctx context.Context, c net.Conn) {
		_, _ = c.Read(make([]byte, 1)) // the request has come
		cancel()
		<-ctx.Done()
	})
	report, err := h.Test(ctx, &handler.TestRequest{Config: webhook.Config{URL: url, Unsigned: true}})
	if err != nil || report.OK || !strings.Contains(steps(report), "request FAILED") {
		t.Errorf("%v\n%s", err, steps(report))
	}
}

func TestSampleIsMarked(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	for _, test := range []bool{true, false} {
		if _, err := deliver(t, webhook.Config{URL: r.URL}, payload.JSON(1), func(req *handler.Request) { req.Test = test }); err != nil {
			t.Fatal(err)
		}
	}
	if all := r.requests(); len(all) != 2 || all[0].header.Get("X-Delivery-Test") != "true" || len(all[1].header.Values("X-Delivery-Test")) != 0 {
		t.Errorf("%+v", all)
	}
}

// unresolving is env where no name has an address.
func unresolving(env handler.Env) handler.Env {
	dialer := net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name server")
	}}}
	env.Dial = dialer.DialContext
	env.Client = &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	return env
}

func TestUnresolvableHost(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{URL: "https://no-such-host.example.com"}, payload.JSON(1))
	if err := h.Open(unresolving(handlertest.Env(t))); err != nil {
		t.Fatal(err)
	}
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); e == nil || e.Category != handler.Network || !e.WillRetry() || !strings.Contains(err.Error(), "lookup no-such-host.example.com") {
		t.Errorf("%v", err)
	}
}
