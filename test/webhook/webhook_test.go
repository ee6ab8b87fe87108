package webhook_test

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery/test/internal/npm"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

const (
	newSecret = "whsec_/aeQo1udfX7UOf6vtyZ9AJ7q0ukOjIMn"
	oldSecret = "whsec_pDIwVqKyHqZSeS3rmMzPXrPfZm9TRvvJcLhLDIoq2hU="
)

// privateKey is that of RFC 8032, section 7.1, test 2.
const privateKey = "whsk_TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs="

func publicKey(t *testing.T) string {
	t.Helper()
	public, err := webhook.PublicKey(destination.NewSecret(privateKey))
	if err != nil || public != "whpk_PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=" {
		t.Fatalf("%s, %v", public, err)
	}
	return public
}

func strangersKey(t *testing.T) string {
	t.Helper()
	public, err := webhook.PublicKey(webhook.GenerateKey())
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// message is a request as a receiver has it, and what a verifier must say.
type message struct {
	Name    string            `json:"name"`
	Secret  string            `json:"secret"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	genuine bool
}

func (m message) asymmetric() bool { return strings.HasPrefix(m.Secret, "whpk_") }

func (m message) header() http.Header {
	h := http.Header{}
	for name, value := range m.Headers {
		h.Set(name, value)
	}
	return h
}

// send delivers content with the handler, over HTTP, and returns what the receiver got.
func send(t *testing.T, content payload.Payload, secrets ...string) message {
	t.Helper()
	var mu sync.Mutex
	var got []message
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		headers := map[string]string{}
		for name := range r.Header {
			headers[strings.ToLower(name)] = r.Header.Get(name)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, message{Headers: headers, Body: string(body)})
	}))
	defer s.Close()
	config := webhook.Config{URL: s.URL}
	for _, secret := range secrets {
		config.SigningSecrets = append(config.SigningSecrets, destination.NewSecret(secret))
	}
	h := webhook.New()
	if _, err := h.Deliver(t.Context(), handlertest.Request(t, h, config, content)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 1 {
		t.Fatalf("%d requests came", len(got))
	}
	return got[0]
}

// messages are what was sent, genuine, and with one byte flipped in each place that the signature
// protects.
func messages(t *testing.T) []message {
	t.Helper()
	var all []message
	for name, content := range map[string]payload.Payload{
		"json":   payload.JSON(map[string]any{"report": "ready", "größe": 3.14, "html": "<&>"}),
		"stream": payload.Bytes("large.json", []byte(`"`+strings.Repeat("0123456789abcdef", 3<<16)+`"`)), // 3 MiB: read twice
	} {
		for keys, secrets := range map[string][]string{
			"one secret": {newSecret}, "rotating": {newSecret, oldSecret}, "one key": {privateKey}, "rotating to a key": {privateKey, newSecret},
		} {
			sent := send(t, content, secrets...)
			for _, secret := range secrets {
				if secret == privateKey {
					secret = publicKey(t)
				}
				name := name + ", " + keys + ", " + secret[:10]
				genuine := sent
				genuine.Name, genuine.Secret, genuine.genuine = name, secret, true
				all = append(all, genuine)

				flipped := genuine
				flipped.genuine = false
				flipped.Name, flipped.Body = name+", body flipped", flip(sent.Body, len(sent.Body)/2)
				all = append(all, flipped)
				for header, at := range map[string]int{"webhook-id": 3, "webhook-timestamp": 9, "webhook-signature": 10} {
					flipped := genuine
					flipped.genuine = false
					flipped.Name, flipped.Headers = name+", "+header+" flipped", maps.Clone(sent.Headers)
					v := strings.Fields(sent.Headers[header])
					for i := range v { // of every signature
						v[i] = flip(v[i], at)
					}
					flipped.Headers[header] = strings.Join(v, " ")
					all = append(all, flipped)
				}
			}
			if len(secrets) == 1 {
				foreign := sent
				foreign.Name, foreign.Secret = name+", another secret", oldSecret
				if secrets[0] == privateKey {
					foreign.Secret = strangersKey(t)
				}
				all = append(all, foreign)
			}
		}
	}
	return all
}

// flip changes one byte of text into another that may stand there.
func flip(s string, at int) string {
	b := []byte(s)
	switch b[at] {
	case '1', 'b', 'B':
		b[at]++
	default:
		b[at] = '1'
	}
	return string(b)
}

func TestGoLibrary(t *testing.T) {
	t.Parallel()
	for _, m := range messages(t) {
		if !m.asymmetric() { // which the library does not know
			verifier, err := standardwebhooks.NewWebhook(m.Secret)
			if err != nil {
				t.Fatal(err)
			}
			if err := verifier.Verify([]byte(m.Body), m.header()); (err == nil) != m.genuine {
				t.Errorf("%s: %v", m.Name, err)
			}
		}
		if err := webhook.Verify([]string{m.Secret}, m.header(), []byte(m.Body)); (err == nil) != m.genuine {
			t.Errorf("%s, our own: %v", m.Name, err)
		}
	}
}

// What the library signs is what Sign gives.
func TestGoLibrarySigns(t *testing.T) {
	t.Parallel()
	sent := send(t, payload.JSON(1), newSecret)
	verifier, err := standardwebhooks.NewWebhook(newSecret)
	if err != nil {
		t.Fatal(err)
	}
	header, err := webhook.Sign([]string{newSecret}, "msg-1", at(t, sent), []byte(sent.Body))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := verifier.Sign("msg-1", at(t, sent), []byte(sent.Body))
	if err != nil || theirs != header.Get("webhook-signature") {
		t.Errorf("%s, ours %s, %v", theirs, header.Get("webhook-signature"), err)
	}
}

func TestNodeLibraries(t *testing.T) {
	t.Parallel()
	dir := install(t)
	all := messages(t)
	in, err := json.Marshal(all) //nolint:gosec // the secrets are made up
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "verify.mjs")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(in)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node verify.mjs: %v\n%s", err, problems.String())
	}
	var results []struct {
		Name, Library, Error string
		Verified             bool
	}
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatal(err)
	}
	var verified []message // once for each library
	for _, m := range all {
		verified = append(verified, m)
		if !m.asymmetric() {
			verified = append(verified, m)
		}
	}
	if len(results) != len(verified) {
		t.Fatalf("%d results, want %d", len(results), len(verified))
	}
	for i, r := range results {
		m := verified[i]
		if r.Name != m.Name || r.Verified != m.genuine {
			t.Errorf("%s, %s: verified %t: %s", r.Library, m.Name, r.Verified, r.Error)
		}
		if !m.genuine && !strings.HasPrefix(r.Error, "WebhookVerificationError") {
			t.Errorf("%s, %s: refused for another reason: %s", r.Library, m.Name, r.Error)
		}
	}
}

// install puts the libraries of the lock file into the user's cache.
func install(t *testing.T) string {
	t.Helper()
	dir, err := npm.Install(t.Context(), "webhook", "node", "verify.mjs")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// at is the time of the attempt, as it was sent.
func at(t *testing.T, m message) time.Time {
	t.Helper()
	seconds, err := strconv.ParseInt(m.Headers["webhook-timestamp"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(seconds, 0)
}
