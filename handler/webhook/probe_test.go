package webhook_test

import (
	"context"
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
	h := webhook.New()
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	report, err := h.Test(t.Context(), &handler.TestRequest{Config: webhook.Config{URL: url}})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestProbe(t *testing.T) {
	t.Parallel()
	s, env := tlsReceiver(t, func(http.ResponseWriter, *http.Request) { t.Error("a request came") })
	port := s.URL[strings.LastIndex(s.URL, ":"):]

	report := probe(t, env, s.URL+"/hook?token=t")
	if !report.OK || len(report.Steps) != 2 || report.Latency <= 0 || !strings.Contains(steps(report), "TLS 1.3; the certificate is valid until "+s.Certificate().NotAfter.Format(time.DateOnly)) {
		t.Errorf("a working one:\n%s", steps(report))
	}
	soon := env
	soon.Now = func() time.Time { return s.Certificate().NotAfter.Add(-24 * time.Hour) }
	if report := probe(t, soon, s.URL); !report.OK || !strings.Contains(steps(report), "renewed soon") {
		t.Errorf("a certificate that expires:\n%s", steps(report))
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
	r := newReceiver(t, nil)
	if report := probe(t, env, r.URL); !report.OK || len(report.Steps) != 1 {
		t.Errorf("plain http:\n%s", steps(report))
	}
	if report := probe(t, env, "https"+r.URL[len("http"):]); report.OK || !strings.Contains(steps(report), "does not speak TLS") {
		t.Errorf("plain http where TLS is expected:\n%s", steps(report))
	}
	if _, err := webhook.New().Test(t.Context(), &handler.TestRequest{Config: webhook.Config{}}); err == nil {
		t.Error("a handler that is not open tests")
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
