package gcs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/auth"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage/gcs"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

// iam is as much of Google's service for impersonation as is needed. It lets whoever has the token
// "base" act as one account.
func iam(t *testing.T) *url.URL {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		authorized := r.Header.Get("Authorization") == "Bearer base/canary+4712" || r.Header.Get("Authorization") == "Bearer "+rightToken
		if !authorized || !strings.Contains(r.URL.Path, email) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"error":{"code":403,"status":"PERMISSION_DENIED","message":"Permission 'iam.serviceAccounts.getAccessToken' denied"}}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"accessToken":%q,"expireTime":%q}`, rightToken, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// elsewhere sends what is for Google's service for impersonation to another address.
type elsewhere struct {
	to   *url.URL
	base http.RoundTripper
}

func (e elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == "iamcredentials.googleapis.com" {
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = e.to.Scheme, e.to.Host
	}
	return e.base.RoundTrip(r)
}

type static string

func (s static) Token(context.Context) (*auth.Token, error) {
	return &auth.Token{Value: string(s), Expiry: time.Now().Add(time.Hour)}, nil
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	to := iam(t)
	host := func(token string) gcs.Option {
		return gcs.WithCredentials(auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: static(token)}))
	}
	key := destination.NewSecret(keyFile(private))
	const other = "other@acme.iam.gserviceaccount.com"
	allow := gcs.WithImpersonation(func(organization, account string) bool { return organization == "handlertest" && account != other })
	trust := gcs.WithTrustedEndpoint(server.URL)
	for name, c := range map[string]struct {
		credentials gcs.Credentials
		options     []gcs.Option
		category    handler.Category
		says        string
	}{
		"the host's":                        {gcs.Credentials{Type: gcs.Default}, []gcs.Option{host(rightToken), trust}, 0, ""},
		"the host's, elsewhere":             {gcs.Credentials{Type: gcs.Default}, []gcs.Option{host(rightToken)}, handler.Configuration, "not sent to an endpoint"},
		"the host's, as another":            {gcs.Credentials{Type: gcs.Default, Impersonate: email}, []gcs.Option{host("base/canary+4712"), trust, allow}, 0, ""},
		"the host's, as another, not asked": {gcs.Credentials{Type: gcs.Default, Impersonate: email}, []gcs.Option{host("base/canary+4712"), trust}, handler.Configuration, "does not let organization"},
		"the host's, as one not allowed":    {gcs.Credentials{Type: gcs.Default, Impersonate: other}, []gcs.Option{host("base/canary+4712"), trust, allow}, handler.Configuration, "does not let organization"},
		"the host's, refused":               {gcs.Credentials{Type: gcs.Default, Impersonate: email}, []gcs.Option{host("worthless/canary"), trust, allow}, handler.Authentication, "Token Creator"},
		"a key, as another":                 {gcs.Credentials{ServiceAccount: key, Impersonate: email}, nil, 0, ""},
		"a key, as one that does not let":   {gcs.Credentials{ServiceAccount: key, Impersonate: other}, nil, handler.Authentication, "Token Creator"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := handlertest.Env(t)
			client := *env.Client
			client.Transport = elsewhere{to, client.Transport}
			env.Client = &client
			h := gcs.New(c.options...)
			if err := h.Open(env); err != nil {
				t.Fatal(err)
			}
			in := newBucket(t)
			sent := uploads.Random(2 * mib)
			req := handlertest.Request(t, gcs.New(), config(in), payload.Bytes("x", sent))
			changed := config(in)
			changed.Credentials = c.credentials
			req.Config = changed
			_, err := h.Deliver(t.Context(), req)
			if c.says == "" {
				if err != nil || !bytes.Equal(object(in, req.ItemID), sent) {
					t.Error(err)
				}
				return
			}
			if e := handler.Classify(err); err == nil || e.Category != c.category || e.WillRetry() || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", e.Category, err)
			}
			if err != nil && strings.Contains(fmt.Sprintf("%+v", err), "canary") {
				t.Errorf("a token is in the error: %v", err)
			}
		})
	}
}

// The service no longer takes a token that is kept: the next attempt has a new one.
func TestRevokedToken(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	f := newFront(t)
	h := gcs.New()
	req := handlertest.Request(t, h, throughFront(f, in), payload.JSON("x"))
	f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
		if operation == "POST" && n == 1 {
			fail(w, 401, "authError", "Invalid Credentials")
			return true
		}
		return false
	})
	if _, err := h.Deliver(t.Context(), req); err == nil || handler.Classify(err).Category != handler.Authentication {
		t.Fatal(err)
	}
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Error(err)
	}
}
