package s3_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload"
)

const role = "arn:aws:iam::123456789012:role/exports"

// tokenService is as much of STS as a role needs.
type tokenService struct {
	*httptest.Server
	mu    sync.Mutex
	asked []url.Values
	keys  []string // what signed, by Credential
	fail  func(w http.ResponseWriter) bool
}

func newTokenService(t testing.TB) *tokenService {
	t.Helper()
	s := &tokenService{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, r.PostForm)
		key, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="), "/")
		s.keys = append(s.keys, key)
		if s.fail != nil && s.fail(w) {
			return
		}
		action := r.PostForm.Get("Action")
		_, _ = fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult><Credentials>
			<AccessKeyId>ASIAROLE%[2]d</AccessKeyId><SecretAccessKey>role/canary</SecretAccessKey><SessionToken>role/session</SessionToken>
			<Expiration>%[3]s</Expiration></Credentials></%[1]sResult></%[1]sResponse>`, action, len(s.asked), time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *tokenService) last(t *testing.T, n int) url.Values {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked) != n {
		t.Fatalf("%d roles were assumed, want %d", len(s.asked), n)
	}
	return s.asked[n-1]
}

func signedBy(h http.Header) string {
	key, _, _ := strings.Cut(strings.TrimPrefix(h.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="), "/")
	return key
}

func TestAssumedRole(t *testing.T) {
	t.Parallel()
	tokens := newTokenService(t)
	b := &bucketServer{objects: map[string][]byte{}}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	config := configAt(server.URL)
	config.Credentials = s3.Credentials{
		AccessKeyID: "AKIABASE", SecretAccessKey: destination.NewSecret(secretKey), RoleARN: role, ExternalID: "acme-7f3a",
	}
	h := s3.New(s3.WithSTSEndpoint(tokens.URL))
	req := handlertest.Request(t, h, config, payload.JSON(1))
	for i := range 3 {
		req.ItemID = fmt.Sprint(i)
		if _, err := h.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	form := tokens.last(t, 1) // and is kept for the next attempts
	if form.Get("Action") != "AssumeRole" || form.Get("RoleArn") != role || form.Get("ExternalId") != "acme-7f3a" ||
		form.Get("RoleSessionName") != "deliverykit-"+req.Destination.ID || tokens.keys[0] != "AKIABASE" {
		t.Errorf("%v by %s", form, tokens.keys[0])
	}
	for _, header := range b.headers {
		if signedBy(header) != "ASIAROLE1" || header.Get("X-Amz-Security-Token") != "role/session" {
			t.Errorf("signed by %s", signedBy(header))
		}
	}
	h.Forget(req.Destination.ID)
	req.ItemID = "after a change"
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	tokens.last(t, 2)

	// The host's external id overrules the config's: the organization cannot use another's.
	h = s3.New(s3.WithSTSEndpoint(tokens.URL), s3.WithExternalID(func(organization string) string { return "of " + organization }))
	if _, err := h.Deliver(t.Context(), handlertest.Request(t, h, config, payload.JSON(1))); err != nil {
		t.Fatal(err)
	}
	if id := tokens.last(t, 3).Get("ExternalId"); id != "of handlertest" {
		t.Errorf("external id %q", id)
	}
}

func TestRefusedRole(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status   int
		code     string
		category handler.Category
		retry    bool
		says     string
	}{
		{403, "AccessDenied", handler.Authentication, false, "external id"},
		{403, "InvalidClientTokenId", handler.Authentication, false, "unknown"},
		{400, "ExpiredToken", handler.Authentication, false, "have expired"},
		{429, "Throttling", handler.RateLimit, true, ""},
		{503, "ServiceUnavailable", handler.Remote, true, ""},
	} {
		t.Run(c.code, func(t *testing.T) {
			t.Parallel()
			tokens := newTokenService(t)
			tokens.fail = func(w http.ResponseWriter) bool {
				w.WriteHeader(c.status)
				_, _ = fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>no</Message></Error></ErrorResponse>`, c.code)
				return true
			}
			h := s3.New(s3.WithSTSEndpoint(tokens.URL))
			config := configAt("http://127.0.0.1:1")
			config.Credentials.RoleARN = role
			req := handlertest.Request(t, h, config, payload.JSON(1))
			_, err := h.Deliver(t.Context(), req)
			e := handler.Classify(err)
			if err == nil || e.Category != c.category || e.WillRetry() != c.retry || !strings.Contains(err.Error(), role) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: req.Config})
			if err != nil || report.OK || len(report.Steps) != 1 || report.Steps[0].Name != "credentials" {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}

func TestWebIdentity(t *testing.T) {
	t.Parallel()
	tokens := newTokenService(t)
	b := &bucketServer{objects: map[string][]byte{}}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	config := configAt(server.URL)
	config.Credentials = s3.Credentials{Type: s3.WebIdentity, RoleARN: role}
	file := filepath.Join(t.TempDir(), "token")
	h := s3.New(s3.WithSTSEndpoint(tokens.URL), s3.WithWebIdentityTokenFile(file))
	req := handlertest.Request(t, h, config, payload.JSON(1))
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Internal || !e.WillRetry() {
		t.Errorf("without a token: %+v", e)
	}
	if err := os.WriteFile(file, []byte("a.b.c"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	form := tokens.last(t, 1)
	if form.Get("Action") != "AssumeRoleWithWebIdentity" || form.Get("WebIdentityToken") != "a.b.c" || form.Get("RoleArn") != role || signedBy(b.headers[0]) != "ASIAROLE1" {
		t.Errorf("%v", form)
	}
}

// Credentials that expire under a request are dropped, and the next attempt has new ones.
func TestExpiredRole(t *testing.T) {
	t.Parallel()
	tokens := newTokenService(t)
	config := configAt(answering(t, 400, "ExpiredToken", "The provided token has expired."))
	config.Credentials.RoleARN = role
	h := s3.New(s3.WithSTSEndpoint(tokens.URL))
	req := handlertest.Request(t, h, config, payload.JSON(1))
	for attempt := range 2 {
		_, err := h.Deliver(t.Context(), req)
		if e := handler.Classify(err); err == nil || e.Category != handler.Authentication || !e.WillRetry() {
			t.Errorf("%v", err)
		}
		tokens.last(t, attempt+1)
	}
}

func TestHostsCredentials(t *testing.T) {
	t.Parallel()
	b := &bucketServer{objects: map[string][]byte{}}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	config := configAt(server.URL)
	config.Credentials = s3.Credentials{Type: s3.Default}
	raw, err := destination.Raw(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s3.New().ParseConfig(raw); err == nil {
		t.Error("the host's credentials are lent without its consent")
	}
	h := s3.New()
	req := handlertest.Request(t, h, configAt(server.URL), payload.JSON(1))
	req.Config = config // as saved when another process lent them
	_, err = h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Configuration || len(b.headers) != 0 {
		t.Errorf("%v", err)
	}
	h = s3.New(s3.WithCredentials(credentials.NewStaticCredentialsProvider("AKIAHOST", secretKey, "")))
	if _, err := h.Deliver(t.Context(), handlertest.Request(t, h, config, payload.JSON(1))); err != nil || signedBy(b.headers[0]) != "AKIAHOST" {
		t.Errorf("%v", err)
	}
}

// Not parallel: the default chain reads the environment of the process.
func TestDefaultChain(t *testing.T) { //nolint:paralleltest // see above
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIAENVIRONMENT", "AWS_SECRET_ACCESS_KEY": secretKey, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		t.Setenv(name, value)
	}
	b := &bucketServer{objects: map[string][]byte{}}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	config := configAt(server.URL)
	config.Credentials = s3.Credentials{Type: s3.Default}
	h := s3.New(s3.WithDefaultCredentials())
	if _, err := h.Deliver(t.Context(), handlertest.Request(t, h, config, payload.JSON(1))); err != nil || signedBy(b.headers[0]) != "AKIAENVIRONMENT" {
		t.Errorf("%v", err)
	}

	// Without any, the chain asks the instance's metadata service, which the guard does not let it
	// reach.
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	h = s3.New(s3.WithDefaultCredentials())
	_, err := h.Deliver(t.Context(), handlertest.Request(t, h, config, payload.JSON(1)))
	if e := handler.Classify(err); err == nil || e.Category != handler.Configuration || !strings.Contains(err.Error(), "169.254.169.254") {
		t.Errorf("%v", err)
	}
	var permanent interface{ Permanent() bool }
	if !errors.As(err, &permanent) {
		t.Error("it was not the guard that refused")
	}

	// Nor a container's.
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.2/v1/credentials")
	h = s3.New(s3.WithDefaultCredentials())
	_, err = h.Deliver(t.Context(), handlertest.Request(t, h, config, payload.JSON(1)))
	if !errors.As(err, &permanent) || !strings.Contains(err.Error(), "169.254.170.2") {
		t.Errorf("%v", err)
	}
}
