package s3_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload"
)

const (
	secretKey    = "secret/canary+0815"
	sessionToken = "session/canary+0816"
)

// answering is the URL of a server that answers every request alike, once its body has come.
func answering(t testing.TB, status int, code, message string, headers ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if code != "" && r.Method != http.MethodHead {
			_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message><RequestId>r</RequestId></Error>`, code, message)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func configAt(endpoint string) s3.Config {
	return s3.Config{
		Bucket: "exports", Region: "eu-central-1", Endpoint: endpoint, PathStyle: true,
		Credentials: s3.Credentials{
			AccessKeyID: "AKIAEXAMPLE", SecretAccessKey: destination.NewSecret(secretKey), SessionToken: destination.NewSecret(sessionToken),
		},
	}
}

// Each failure has its category, a message that helps, and the right retry; on the first attempt,
// which stores, and on the second, which looks first and so meets a HEAD that has no body.
func TestFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, code, message string
		status              int
		headers             []string
		category            handler.Category
		retry               bool
		after               time.Duration
		once                bool // the answer to a HEAD, without a code, says less
		says                []string
	}{
		{name: "denied", status: 403, code: "AccessDenied", message: "Access Denied", category: handler.Authentication, says: []string{"s3:PutObject", "s3:PutObjectTagging", "kms:GenerateDataKey", "exports"}},
		{name: "missing bucket", status: 404, code: "NoSuchBucket", message: "The specified bucket does not exist", category: handler.Configuration, says: []string{"create it"}},
		{name: "wrong region, redirect", status: 301, code: "PermanentRedirect", message: "use the endpoint", headers: []string{"X-Amz-Bucket-Region", "us-west-2"}, category: handler.Configuration, says: []string{`"us-west-2"`, `"eu-central-1"`}},
		{name: "wrong region, header", status: 400, code: "AuthorizationHeaderMalformed", message: "the region 'eu-central-1' is wrong; expecting 'ap-south-1'", category: handler.Configuration, says: []string{`"ap-south-1"`}},
		{name: "wrong region, other quotes", status: 400, code: "AuthorizationHeaderMalformed", message: "the region &quot;eu-central-1&quot; is wrong; expecting &quot;ap-south-1&quot;", category: handler.Configuration, says: []string{`is in region "ap-south-1"`}},
		{name: "wrong region, unknown", status: 301, category: handler.Configuration, says: []string{`not in region "eu-central-1"`}},
		{name: "expired token", status: 400, code: "ExpiredToken", message: "The provided token has expired.", category: handler.Authentication, says: []string{"session token has expired"}},
		{name: "unknown key", status: 403, code: "InvalidAccessKeyId", message: "no such key", category: handler.Authentication, says: []string{"unknown"}},
		{name: "clock", status: 403, code: "RequestTimeTooSkewed", message: "too far", category: handler.Internal, retry: true, says: []string{"clock"}},
		{name: "throttled", status: 503, code: "SlowDown", message: "Reduce your request rate", headers: []string{"Retry-After", "7"}, category: handler.RateLimit, retry: true, after: 7 * time.Second, once: true},
		{name: "throttled, 429", status: 429, code: "TooManyRequests", category: handler.RateLimit, retry: true},
		{name: "failing", status: 500, code: "InternalError", message: "We encountered an internal error", category: handler.Remote, retry: true},
		{name: "failing, no XML", status: 502, category: handler.Remote, retry: true},
		{name: "unavailable", status: 503, code: "ServiceUnavailable", category: handler.Remote, retry: true},
		{name: "full", status: 507, code: "XMinioStorageFull", message: "full", category: handler.Capacity, retry: true, once: true, says: []string{"full"}},
		{name: "under way", status: 409, code: "ConditionalRequestConflict", message: "conflict", category: handler.Remote, retry: true},
		{name: "too slow", status: 400, code: "RequestTimeout", message: "idle", category: handler.Timeout, retry: true},
		{name: "changed on the way", status: 400, code: "BadDigest", message: "no match", category: handler.Network, retry: true},
		{name: "too large", status: 400, code: "EntityTooLarge", message: "large", category: handler.Validation},
		{name: "old server", status: 501, code: "NotImplemented", message: "A header you provided", category: handler.Configuration, says: []string{"If-None-Match"}},
		{name: "disabled key", status: 400, code: "KMS.DisabledException", message: "disabled", category: handler.Configuration, says: []string{"enable it"}},
		{name: "foreign text", status: 403, code: "AccessDenied", message: strings.Repeat("x\n&#27;", 2000), category: handler.Authentication},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := s3.New()
			config := configAt(answering(t, c.status, c.code, c.message, c.headers...))
			config.Tags, config.Encryption.Type = map[string]string{"a": "b"}, "aws:kms"
			req := handlertest.Request(t, h, config, payload.JSON("x"))
			for _, attempt := range []int{1, 2} {
				req.Attempt = attempt
				_, err := h.Deliver(t.Context(), req)
				if err == nil {
					t.Fatal("delivered")
				}
				e := handler.Classify(err)
				if attempt == 2 && c.once {
					if !e.WillRetry() {
						t.Errorf("attempt 2: %v", err)
					}
					continue
				}
				if e.Category != c.category || e.WillRetry() != c.retry || e.RetryAfter != c.after || e.StatusCode != c.status {
					t.Errorf("attempt %d: %s, retry %t after %s, status %d: %v", attempt, e.Category, e.WillRetry(), e.RetryAfter, e.StatusCode, err)
				}
				if len(err.Error()) > 1200 || strings.ContainsAny(err.Error(), "\n\x1b") {
					t.Errorf("attempt %d: %d bytes: %q", attempt, len(err.Error()), err)
				}
				for _, says := range c.says {
					if !strings.Contains(err.Error(), says) {
						t.Errorf("attempt %d does not say %q: %v", attempt, says, err)
					}
				}
			}
		})
	}
}

// An echoing server gets to see the session token, and must not get it into our records.
func TestEchoedSecrets(t *testing.T) {
	t.Parallel()
	h := s3.New()
	req := handlertest.Request(t, h, configAt(answering(t, 403, "AccessDenied", "you sent "+sessionToken+" and "+secretKey)), payload.JSON("x"))
	_, err := h.Deliver(t.Context(), req)
	for e := err; e != nil; e = errors.Unwrap(e) {
		if text := fmt.Sprintf("%v %+v", e, e); strings.Contains(text, sessionToken) || strings.Contains(text, secretKey) {
			t.Error("a secret is in the error")
		}
	}
	if err == nil || !strings.Contains(err.Error(), "you sent "+destination.Redacted) {
		t.Errorf("%v", err)
	}
}

func TestCutConnection(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = c.Close()
		}
	}))
	t.Cleanup(s.Close)
	h := s3.New()
	_, err := h.Deliver(t.Context(), handlertest.Request(t, h, configAt(s.URL), payload.JSON("x")))
	if e := handler.Classify(err); err == nil || e.Category != handler.Network || !e.WillRetry() {
		t.Errorf("%v", err)
	}
	if n.Load() != 3 {
		t.Errorf("%d tries within the attempt, want 3", n.Load())
	}
}

// A permission that is missing is named by the step of the connection test that needs it.
func TestCanaryNamesThePermission(t *testing.T) {
	t.Parallel()
	for denied, want := range map[string]string{http.MethodPut: "s3:PutObject", http.MethodGet: "s3:GetObject", http.MethodDelete: "s3:DeleteObject"} {
		t.Run(denied, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(&bucketServer{objects: map[string][]byte{}, denied: denied})
			t.Cleanup(s.Close)
			h := s3.New()
			handlertest.Open(t, h)
			parsed, _ := handlertest.Parse(t, h, configAt(s.URL))
			report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: parsed})
			if err != nil || report.OK {
				t.Fatalf("%+v, %v", report, err)
			}
			found := false
			for _, step := range report.Steps {
				found = found || !step.OK && strings.Contains(step.Finding, want) && strings.Contains(step.Finding, "403")
			}
			if !found {
				t.Errorf("nothing names %s: %+v", want, report.Steps)
			}
		})
	}
	s := httptest.NewServer(&bucketServer{objects: map[string][]byte{}, careless: true})
	t.Cleanup(s.Close)
	h := s3.New()
	handlertest.Open(t, h)
	parsed, _ := handlertest.Parse(t, h, configAt(s.URL))
	report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: parsed})
	if err != nil || report.OK || !strings.Contains(fmt.Sprint(report.Steps), "If-None-Match") {
		t.Errorf("a server that ignores If-None-Match: %+v, %v", report, err)
	}
}

func TestPartSizes(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct{ size, want, given int64 }{
		{-1, 8 * mib, 0}, {0, 5 * mib, 0}, {5 << 30, 5 * mib, 0}, {50_000 * mib, 5 * mib, 0}, {50_000*mib + 1, 6 * mib, 0},
		{5 << 40, 525 * mib, 0}, {1, 5 * mib, 5 * mib}, {5 << 40, 525 * mib, 5 * mib}, {-1, 64 * mib, 64 * mib},
	} {
		if got := s3.PartSize(s3.Config{PartSize: c.given}, c.size); got != c.want || c.size > 0 && (c.size+got-1)/got > 10_000 {
			t.Errorf("%d: %d, want %d", c.size, got, c.want)
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	err := s3.New(nil, s3.WithCredentials(nil), s3.WithWebIdentityToken(nil), s3.WithExternalID(nil), s3.WithSTSEndpoint("http://sts.example.com"),
		s3.WithMemory(1), s3.WithDefaultCredentials(), s3.WithDefaultCredentials()).Open(handler.Env{Client: http.DefaultClient})
	if err == nil || strings.Count(err.Error(), "\n") != 7 {
		t.Errorf("%v", err)
	}
	h := s3.New()
	_, err = h.Deliver(context.Background(), &handler.Request{Config: s3.Config{}})
	if e := handler.Classify(err); err == nil || e.Category != handler.Internal {
		t.Errorf("a handler that is not open: %v", err)
	}
}

func TestForeignHostsAreRefusedWhenDialled(t *testing.T) {
	t.Parallel()
	h := s3.New()
	req := handlertest.Request(t, h, configAt("http://127.0.0.1:1"), payload.JSON("x"))
	c, _ := req.Config.(s3.Config)
	c.Endpoint, c.AllowHTTP = "http://10.0.0.1:9000", true // as if a name had changed its address since
	req.Config = c
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Configuration || e.WillRetry() {
		t.Errorf("%v", err)
	}
}

func ExampleConfig() {
	config := s3.Config{
		Bucket: "acme-exports", Region: "eu-central-1",
		Credentials: s3.Credentials{Type: s3.Default, RoleARN: "arn:aws:iam::123456789012:role/exports", ExternalID: "acme-7f3a"},
		Naming:      storage.Naming{Name: "{year}/{month}/{topic}-{item}{ext}"},
		Encryption:  s3.Encryption{Type: "aws:kms"},
		ObjectLock:  s3.ObjectLock{Mode: "COMPLIANCE", Days: 365},
	}
	fmt.Println(config.Validate())
	config.Bucket, config.PartSize = "acme/exports", 1
	fmt.Println(config.Validate())
	// Output:
	// <nil>
	// bucket: is not a bucket name: 3 to 63 letters, digits, hyphens and dots
	// part_size: is not between 5242880 and 536870912 bytes
}
