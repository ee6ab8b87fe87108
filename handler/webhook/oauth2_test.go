package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

const (
	clientID     = "delivery client/7"
	clientSecret = "client+secret/canary %94&"
)

// issuer is a token endpoint that keeps to RFC 6749, section 4.4, and a receiver that takes its
// tokens alone.
type issuer struct {
	*httptest.Server
	body  bool          // wants the client's credentials there, not in the header
	lasts time.Duration // of a token; 0 is not told

	mu     sync.Mutex
	asked  []url.Values
	valid  map[string]bool
	came   []string // the Authorization of each request to the receiver
	always int      // the receiver's answer, whatever comes
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{valid: map[string]bool{}, lasts: time.Hour}
	mux := http.NewServeMux()
	mux.HandleFunc("/token", i.token)
	mux.HandleFunc("/hook", i.hook)
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) token(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": "the client said " + clientSecret})
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.ParseForm() != nil || r.URL.RawQuery != "" {
		refuse(http.StatusBadRequest, "invalid_request")
		return
	}
	for _, values := range r.PostForm {
		if len(values) != 1 || values[0] == "" { // section 3.2
			refuse(http.StatusBadRequest, "invalid_request")
			return
		}
	}
	id, secret := r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	user, password, basic := r.BasicAuth()
	if basic == i.body || basic && (id != "" || secret != "") { // section 2.3: one way at a time
		refuse(http.StatusBadRequest, "invalid_request")
		return
	}
	if basic { // encoded as in a form, section 2.3.1
		id, _ = url.QueryUnescape(user)
		secret, _ = url.QueryUnescape(password)
	}
	switch {
	case id != clientID || secret != clientSecret:
		w.Header().Set("WWW-Authenticate", "Basic")
		refuse(http.StatusUnauthorized, "invalid_client")
		return
	case r.PostForm.Get("grant_type") != "client_credentials":
		refuse(http.StatusBadRequest, "unsupported_grant_type")
		return
	case strings.Contains(r.PostForm.Get("scope"), "forbidden"):
		refuse(http.StatusBadRequest, "invalid_scope")
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, r.PostForm)
	token := fmt.Sprintf("token-canary-%d", len(i.asked))
	i.valid[token] = true
	answer := map[string]any{"access_token": token, "token_type": "bearer"}
	if i.lasts > 0 {
		answer["expires_in"] = int(i.lasts.Seconds())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(answer)
}

func (i *issuer) hook(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.came = append(i.came, r.Header.Get("Authorization"))
	switch token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); {
	case i.always != 0:
		w.WriteHeader(i.always)
	case !ok || !i.valid[token]:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "not "+token)
	}
}

func (i *issuer) revoke() {
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.valid)
}

func (i *issuer) counts() (asked, came int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.asked), len(i.came)
}

func (i *issuer) config() webhook.Config {
	return webhook.Config{URL: i.URL + "/hook", SigningSecrets: secrets(newSecret), Auth: webhook.ClientCredentials(i.URL+"/token", clientID, clientSecret)}
}

// wantCounts checks how often a token was asked for, and a payload delivered.
func (i *issuer) wantCounts(t *testing.T, asked, came int) {
	t.Helper()
	if a, c := i.counts(); a != asked || c != came {
		t.Errorf("%d tokens and %d requests, want %d and %d", a, c, asked, came)
	}
}

// noCanary fails if a credential shows in what is recorded of an attempt.
func noCanary(t *testing.T, result *handler.Result, err error) {
	t.Helper()
	b, jsonErr := json.Marshal(result)
	if jsonErr != nil {
		t.Fatal(jsonErr)
	}
	for _, secret := range []string{clientSecret, url.QueryEscape(clientSecret), "canary", newSecret} {
		if strings.Contains(string(b), secret) || err != nil && strings.Contains(fmt.Sprintf("%v %+v", err, handler.Classify(err)), secret) {
			t.Errorf("a secret shows: %v\n%s", err, b)
		}
	}
}

func TestOAuth2TokenIsKept(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	h := webhook.New()
	now := time.Now()
	var mu sync.Mutex
	env := handlertest.Env(t)
	env.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	advance := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	c := i.config()
	c.Auth.OAuth2.Scopes, c.Auth.OAuth2.Audience = []string{"events:write", "b"}, "https://api.example.com/"
	c.Auth.OAuth2.Params = map[string]string{"resource": "r&d"}
	req := handlertest.Request(t, h, c, payload.JSON(1))
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	attempt := func() {
		result, err := h.Deliver(t.Context(), req)
		if err != nil {
			t.Error(err)
		}
		noCanary(t, result, err)
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(attempt)
	}
	group.Wait()
	i.wantCounts(t, 1, 8)
	want := url.Values{"grant_type": {"client_credentials"}, "scope": {"events:write b"}, "audience": {"https://api.example.com/"}, "resource": {"r&d"}}
	if got := i.asked[0]; got.Encode() != want.Encode() {
		t.Errorf("asked with %s, want %s", got.Encode(), want.Encode())
	}
	advance(59 * time.Minute)
	attempt()
	i.wantCounts(t, 1, 9)
	advance(time.Minute - 20*time.Second) // not the end yet, but near it
	attempt()
	i.wantCounts(t, 2, 10)

	h.Forget(req.Destination.ID)
	attempt()
	i.wantCounts(t, 3, 11)
	changed := *req
	c.Auth.OAuth2.Scopes = nil
	changed.Config = c
	if _, err := h.Deliver(t.Context(), &changed); err != nil {
		t.Error(err)
	}
	i.wantCounts(t, 4, 12)
	other := *req
	other.Destination = &destination.Destination{ID: "another"}
	if _, err := h.Deliver(t.Context(), &other); err != nil {
		t.Error(err)
	}
	i.wantCounts(t, 5, 13)
}

func TestOAuth2TokenWithoutEnd(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.lasts, i.body = 0, true
	c := i.config()
	c.Auth.OAuth2.Style = webhook.OAuth2Body
	h := webhook.New()
	req := handlertest.Request(t, h, c, payload.JSON(1))
	for range 2 {
		if _, err := h.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	i.wantCounts(t, 1, 2)
}

func TestOAuth2TokenIsRevoked(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	h := webhook.New()
	req := handlertest.Request(t, h, i.config(), payload.Bytes("large", []byte(strings.Repeat("z", 3<<20)))) // sent twice, as a stream
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	i.revoke()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, err := h.Deliver(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if asked, _ := i.counts(); asked != 2 {
		t.Errorf("%d tokens, want a second one for all", asked)
	}

	// One that is refused though it is new is not asked for again.
	i.mu.Lock()
	i.always = http.StatusUnauthorized
	i.mu.Unlock()
	_, before := i.counts()
	result, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); e == nil || e.Category != handler.Authentication || e.StatusCode != http.StatusUnauthorized {
		t.Errorf("%v", err)
	}
	i.wantCounts(t, 3, before+2)
	noCanary(t, result, err)
	h.Forget(req.Destination.ID)
	if _, err = h.Deliver(t.Context(), req); err == nil {
		t.Error("delivered")
	}
	i.wantCounts(t, 4, before+3)
}

func TestOAuth2Failures(t *testing.T) {
	t.Parallel()
	answer := func(code int, contentType, body string, headers ...string) func(*testing.T) string {
		return func(t *testing.T) string {
			t.Helper()
			return newReceiver(t, status(code, body, append(headers, "Content-Type", contentType)...)).URL + "/token?key=query-canary"
		}
	}
	echoed, err := json.Marshal(map[string]string{"error": "invalid_request", "error_description": "you sent " + clientSecret + " and " + url.QueryEscape(clientSecret)})
	if err != nil {
		t.Fatal(err)
	}
	const plain, object = "text/html", "application/json"
	for name, c := range map[string]struct {
		endpoint func(*testing.T) string
		category handler.Category
		retry    bool
		says     string
	}{
		"invalid client":          {answer(401, object, `{"error":"invalid_client"}`), handler.Authentication, false, "client_secret"},
		"invalid client by 400":   {answer(400, object, `{"error":"invalid_client"}`), handler.Authentication, false, "client_secret"},
		"unauthorized":            {answer(401, plain, `<html>`), handler.Authentication, false, "client_secret"},
		"invalid scope":           {answer(400, object, `{"error":"invalid_scope","error_description":"no such scope"}`), handler.Configuration, false, "no such scope"},
		"echo":                    {answer(400, object, string(echoed)), handler.Configuration, false, "invalid_request: you sent [redacted]"},
		"echo in HTML":            {answer(400, plain, clientSecret), handler.Configuration, false, "answered 400"},
		"error by 200":            {answer(200, object, `{"error":"invalid_client"}`), handler.Authentication, false, "invalid_client"},
		"not found":               {answer(404, plain, "no"), handler.Configuration, false, "token_url"},
		"gone":                    {answer(410, plain, "no"), handler.Configuration, false, "410"},
		"conflict":                {answer(409, plain, "no"), handler.Configuration, false, "409"},
		"redirect":                {answer(307, plain, "", "Location", "https://169.254.169.254/?a=b"), handler.Configuration, false, "307"},
		"too many":                {answer(429, plain, "slow", "Retry-After", "17"), handler.RateLimit, true, "429"},
		"server error":            {answer(500, object, `{"error":"invalid_client"}`), handler.Remote, true, "500"},
		"unavailable":             {answer(503, plain, "later", "Retry-After", "17"), handler.Remote, true, "503"},
		"temporarily unavailable": {answer(400, object, `{"error":"temporarily_unavailable"}`), handler.Remote, true, "temporarily"},
		"gateway timeout":         {answer(504, plain, "later"), handler.Timeout, true, "504"},
		"no JSON":                 {answer(200, plain, "welcome"), handler.Remote, true, "gives no token"},
		"no token":                {answer(200, object, `{"token_type":"bearer"}`), handler.Remote, true, "gives no token"},
		"another type":            {answer(200, object, `{"access_token":"canary","token_type":"mac"}`), handler.Remote, true, "not a bearer token"},
		"a header in it":          {answer(200, object, `{"access_token":"canary\r\nX: y","token_type":"bearer"}`), handler.Remote, true, "does not fit"},
		"nobody":                  {func(t *testing.T) string { t.Helper(); return "http://" + refusedAddress(t) + "/?key=query-canary" }, handler.Network, true, "refused"},
		"cut off": {func(t *testing.T) string {
			t.Helper()
			return rawServer(t, func(_ context.Context, c net.Conn) { readRequest(c) })
		}, handler.Network, true, "gives no token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t, nil)
			config := webhook.Config{URL: r.URL, Auth: webhook.ClientCredentials(c.endpoint(t), clientID, clientSecret)}
			result, err := deliver(t, config, payload.JSON(1))
			e := handler.Classify(err)
			if e == nil || e.Category != c.category || e.WillRetry() != c.retry || e.Verdict != handler.ByCategory || !strings.Contains(err.Error(), c.says) ||
				!strings.Contains(err.Error(), "token endpoint http://127.0.0.1:") {
				t.Errorf("%+v: %v", e, err)
			}
			if (name == "too many" || name == "unavailable") && e.RetryAfter != 17*time.Second {
				t.Errorf("retry after %s", e.RetryAfter)
			}
			noCanary(t, result, err)
			if n := len(r.requests()); n != 0 {
				t.Errorf("%d requests without a token", n)
			}
			report := probeConfig(t, handlertest.Env(t), config)
			if last := report.Steps[len(report.Steps)-1]; report.OK || last.Name != "authenticate" || !strings.Contains(last.Finding, c.says) || strings.Contains(last.Finding, "canary") {
				t.Errorf("%s", steps(report))
			}
		})
	}
}

func TestOAuth2EndpointThatHangs(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	var once sync.Once
	hanging := rawServer(t, func(ctx context.Context, c net.Conn) {
		readRequest(c)
		once.Do(func() { close(asked) })
		<-ctx.Done()
	})
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{URL: "http://127.0.0.1:9", Auth: webhook.ClientCredentials(hanging, clientID, clientSecret)}, payload.JSON(1))
	ctx, cancel := context.WithCancelCause(t.Context())
	var group sync.WaitGroup
	for range 3 { // one asks, the others wait for it
		group.Go(func() {
			result, err := h.Deliver(ctx, req)
			if !errors.Is(err, handler.ErrShutdown) {
				t.Errorf("%v", err)
			}
			noCanary(t, result, err)
		})
	}
	<-asked
	cancel(handler.ErrShutdown)
	group.Wait()

	ended, end := context.WithTimeout(t.Context(), 0)
	defer end()
	if _, err := h.Deliver(ended, req); handler.Classify(err).Category != handler.Timeout || !strings.Contains(err.Error(), "gave no token") {
		t.Errorf("%v", err)
	}
}

// The token endpoint is reached as destinations are: what may not be dialled is not.
func TestOAuth2EndpointIsGuarded(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	c := i.config()
	h := webhook.New()
	req := handlertest.Request(t, h, c, payload.JSON(1))
	env := handlertest.Env(t)
	env.Client = &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, forbidden{}
	}}}
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); e == nil || e.Category != handler.Configuration || e.WillRetry() {
		t.Errorf("%v", err)
	}
	i.wantCounts(t, 0, 0)

	c.Auth.OAuth2.TokenURL = "https://169.254.169.254/token"
	raw, err := destination.Raw(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ParseConfig(raw); !slices.Equal(paths(err), []string{"auth.oauth2.token_url"}) {
		t.Errorf("%v", err)
	}
}

type forbidden struct{}

func (forbidden) Error() string   { return "may not be dialled" }
func (forbidden) Permanent() bool { return true }

func TestOAuth2Rules(t *testing.T) {
	t.Parallel()
	const good = `"token_url":"https://example.com/token","client_id":"a","client_secret":"b"`
	for auth, want := range map[string][]string{
		`{"type":"oauth2","oauth2":{` + good + `}}`: nil,
		`{"type":"oauth2","oauth2":{` + good + `,"scopes":["a:b","https://x/.default"],"audience":"x","params":{"resource":"y"},"style":"body"}}`: nil,
		`{"type":"oauth2"}`:                                     {"auth.oauth2.client_id", "auth.oauth2.client_secret", "auth.oauth2.token_url"},
		`{"oauth2":{` + good + `}}`:                             {"auth.oauth2"},
		`{"type":"bearer","token":"t","oauth2":{` + good + `}}`: {"auth.oauth2"},
		`{"type":"oauth2","token":"t","oauth2":{` + good + `}}`: {"auth.token"},
		`{"type":"oauth2","oauth2":{"token_url":"http://example.com","client_id":"a","client_secret":"[redacted]"}}`:               {"auth.oauth2.client_secret", "auth.oauth2.token_url"},
		`{"type":"oauth2","oauth2":{` + good + `,"style":"post","scopes":["a b",""]}}`:                                             {"auth.oauth2.scopes[0]", "auth.oauth2.scopes[1]", "auth.oauth2.style"},
		`{"type":"oauth2","oauth2":{` + good + `,"params":{"grant_type":"password","scope":"x","":"y","client_secret":"canary"}}}`: {"auth.oauth2.params", "auth.oauth2.params.client_secret", "auth.oauth2.params.grant_type", "auth.oauth2.params.scope"},
	} {
		_, err := webhook.New().ParseConfig(json.RawMessage(`{"url":"https://example.com","auth":` + auth + `}`))
		if got := paths(err); !slices.Equal(got, want) || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %q, want %q: %v", auth, got, want, err)
		}
	}
}

func TestProbeGetsAToken(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	h := webhook.New()
	req := handlertest.Request(t, h, i.config(), payload.JSON(1))
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	report, err := h.Test(t.Context(), &handler.TestRequest{DestinationID: req.Destination.ID, Config: req.Config})
	if err != nil || !report.OK || !strings.Contains(steps(report), "authenticate ok: The token endpoint gave an access token\nrequest ok") {
		t.Errorf("%v\n%s", err, steps(report))
	}
	i.wantCounts(t, 2, 2) // a new one, which is used
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	i.wantCounts(t, 2, 3) // and kept
}
