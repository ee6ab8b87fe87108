package webhook_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	handlertest.Run(t, harness())
}

// The same, with an access token, and with a secret that was replaced by a key.
func TestConformanceWithOAuth2(t *testing.T) {
	t.Parallel()
	oauth2 := func(start func(testing.TB) handlertest.Peer) func(testing.TB) handlertest.Peer {
		return func(t testing.TB) handlertest.Peer {
			t.Helper()
			p := start(t)
			config, ok := p.Config.(webhook.Config)
			if !ok {
				t.Fatalf("%T", p.Config)
			}
			config.Auth = webhook.ClientCredentials(newIssuer(t).URL+"/token", clientID, clientSecret)
			key := webhook.GenerateKey()
			config.SigningSecrets = append([]destination.Secret{key}, config.SigningSecrets[:1]...)
			config.PreviousSecrets = []webhook.PreviousSecret{{Secret: destination.NewSecret(oldSecret), Until: time.Now().Add(time.Hour).UTC()}}
			p.Config, p.Secrets = config, []string{newSecret, oldSecret, "second/canary+92", clientSecret, key.Reveal()}
			return p
		}
	}
	h := harness()
	h.Peer, h.Hanging = oauth2(h.Peer), oauth2(h.Hanging)
	for i := range h.Faults {
		h.Faults[i].Peer = oauth2(h.Faults[i].Peer)
	}
	handlertest.Run(t, h)
}

func harness() handlertest.Harness {
	return handlertest.Harness{
		New:     func() handler.Handler { return webhook.New() },
		Peer:    acceptingPeer,
		Hanging: hangingPeer,
		Repeat:  handlertest.Recognisable,
		Faults: []handlertest.Fault{
			{Name: "refused", Category: handler.Network, WillRetry: true, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				return peerAt("http://" + refusedAddress(t))
			}},
			{Name: "cut connection", Category: handler.Network, WillRetry: true, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				return peerAt(rawServer(t, func(_ context.Context, c net.Conn) { readRequest(c) }))
			}},
			{Name: "no HTTP", Category: handler.Network, WillRetry: true, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				return peerAt(rawServer(t, func(_ context.Context, c net.Conn) {
					readRequest(c)
					_, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n")
				}))
			}},
			{Name: "plain http on https", Category: handler.Network, WillRetry: true, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				return peerAt("https" + newReceiver(t, nil).URL[len("http"):])
			}},
			{Name: "certificate", Category: handler.Network, WillRetry: true, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				s := httptest.NewUnstartedServer(http.NotFoundHandler())
				s.Config.ErrorLog = quiet
				s.StartTLS()
				t.Cleanup(s.Close)
				return peerAt(s.URL)
			}},
			failing(http.StatusInternalServerError, handler.Remote, true),
			failing(http.StatusServiceUnavailable, handler.Remote, true),
			failing(http.StatusTooManyRequests, handler.RateLimit, true),
			failing(http.StatusBadRequest, handler.Validation, false),
			failing(http.StatusUnauthorized, handler.Authentication, false),
			failing(http.StatusNotFound, handler.Configuration, false),
			failing(http.StatusFound, handler.Configuration, false),
			failing(http.StatusGone, handler.Configuration, false),
			{Name: "echo", Category: handler.Validation, StatusCode: http.StatusUnprocessableEntity, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				return peerAt(newReceiver(t, echo).URL)
			}},
		},
		Invalid: []handlertest.Invalid{
			{Name: "empty", Config: webhook.Config{}, Paths: []string{"url"}},
			{Name: "unknown field", Config: destination.As("webhook", `{"url":"https://example.com","colour":"red"}`), Paths: []string{"colour"}},
			{Name: "wrong type", Config: destination.As("webhook", `{"url":"https://example.com","auth":{"token":17}}`), Paths: []string{"auth.token"}},
			{Name: "forbidden host", Config: webhook.Config{URL: "https://169.254.169.254/latest"}, Paths: []string{"url"}},
			{
				Name: "everything at once",
				Config: webhook.Config{
					URL: "ftp://example.com", Method: "GET", ContentType: "text", MaxResponse: 1 << 20,
					Headers:           map[string]string{"Host": "a", "X-B": "b\r\nX-Injected: yes"},
					SecretHeaders:     map[string]destination.Secret{"X-C": {}},
					Auth:              webhook.Auth{Type: webhook.AuthBasic, User: "a:b"},
					SigningSecrets:    secrets("whsec_AAAA"),
					IdempotencyHeader: "not a name", TimestampHeader: "Webhook-Id",
				},
				Paths: []string{"url", "method", "content_type", "max_response", "headers.Host", "headers.X-B", "secret_headers.X-C",
					"auth.user", "auth.password", "signing_secrets[0]", "idempotency_header", "timestamp_header"},
			},
		},
	}
}

func configAt(url string) webhook.Config {
	return webhook.Config{
		URL:            url + "?token=query-canary-91",
		Headers:        map[string]string{"X-Tenant": "acme"},
		SecretHeaders:  map[string]destination.Secret{"X-Second": destination.NewSecret("second/canary+92")},
		Auth:           webhook.Basic("user", "password \"canary\" 93"),
		SigningSecrets: secrets(newSecret, oldSecret),
	}
}

// peerAt is a Peer whose config leads to a URL.
func peerAt(url string) handlertest.Peer {
	return handlertest.Peer{
		Config: configAt(url + "/hook"),
		// That of the query is part of the URL, which the owner is shown; errors and records are
		// searched for it elsewhere.
		Secrets: []string{newSecret, oldSecret, "second/canary+92", "password \"canary\" 93"},
	}
}

func failing(code int, category handler.Category, retry bool) handlertest.Fault {
	return handlertest.Fault{
		Name: http.StatusText(code), Category: category, WillRetry: retry, Disables: code == http.StatusGone, StatusCode: code,
		Peer: func(t testing.TB) handlertest.Peer {
			t.Helper()
			return peerAt(newReceiver(t, status(code, "no\x00\xff", "Location", "https://elsewhere.example/?x=y")).URL)
		},
	}
}

func acceptingPeer(t testing.TB) handlertest.Peer {
	t.Helper()
	r := newReceiver(t, nil)
	p := peerAt(r.URL)
	p.Received = func(req *handler.Request) [][]byte {
		var bodies [][]byte
		for _, got := range r.requests() {
			if got.header.Get("Idempotency-Key") != req.MessageID {
				continue
			}
			if err := webhook.Verify([]string{newSecret}, got.header, got.body); err != nil {
				t.Errorf("a request that came: %v", err)
			}
			bodies = append(bodies, got.body)
		}
		return bodies
	}
	return p
}

// hangingPeer takes a request's header, and nothing of a large body.
func hangingPeer(t testing.TB) handlertest.Peer {
	t.Helper()
	return peerAt(rawServer(t, func(ctx context.Context, c net.Conn) {
		readRequest(c)
		<-ctx.Done()
	}))
}

// echo answers with all that came.
func echo(w http.ResponseWriter, r *http.Request) {
	for name, values := range r.Header {
		w.Header()["X-Echo-"+name] = values
	}
	w.WriteHeader(http.StatusUnprocessableEntity)
	_ = r.Header.Write(w)
	user, password, _ := r.BasicAuth()
	_, _ = io.WriteString(w, user+" "+password+" "+r.RequestURI)
}
