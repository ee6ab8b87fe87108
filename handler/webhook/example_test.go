package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/webhook"
)

// A receiver verifies each request before it looks at it. While a secret is being replaced, it
// accepts both.
func ExampleVerifyRequest() {
	current, previous := "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_pDIwVqKyHqZSeS3rmMzPXrPfZm9TRvvJcLhLDIoq2hU="
	hook := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := webhook.VerifyRequest(r, []string{current, previous})
		if err != nil {
			http.Error(w, "not from whom it says", http.StatusUnauthorized)
			return
		}
		fmt.Printf("%s: %s\n", r.Header.Get("webhook-id"), body)
		w.WriteHeader(http.StatusNoContent)
	})

	// What a test of the receiver sends it.
	body := `{"report":"ready"}`
	request := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/hook", strings.NewReader(body))
	request.Header, _ = webhook.Sign([]string{previous}, "msg-1", time.Now(), []byte(body))
	answer := httptest.NewRecorder()
	hook.ServeHTTP(answer, request)
	fmt.Println(answer.Code)

	request = httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/hook", strings.NewReader(`{"report":"forged"}`))
	answer = httptest.NewRecorder()
	hook.ServeHTTP(answer, request)
	fmt.Println(answer.Code)
	// Output:
	// msg-1: {"report":"ready"}
	// 204
	// 401
}

func ExampleVerify() {
	header := http.Header{}
	header.Set("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek")
	header.Set("webhook-timestamp", "1614265330")
	header.Set("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
	then := webhook.Clock(func() time.Time { return time.Unix(1614265400, 0) })

	secrets := []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
	fmt.Println(webhook.Verify(secrets, header, []byte(`{"test": 2432232314}`), then))
	fmt.Println(webhook.Verify(secrets, header, []byte(`{"test": 2432232315}`), then))
	fmt.Println(webhook.Verify(secrets, header, []byte(`{"test": 2432232314}`)))
	// Output:
	// <nil>
	// webhook: no signature matches
	// webhook: the timestamp is too old: by more than 5m0s
}

func ExampleConfig() {
	config := webhook.Config{
		URL:            "https://example.com/hooks/reports",
		Headers:        map[string]string{"X-Tenant": "acme"},
		Auth:           webhook.Bearer("a token"),
		SigningSecrets: []destination.Secret{destination.NewSecret("whsec_/aeQo1udfX7UOf6vtyZ9AJ7q0ukOjIMn")},
	}
	shown, _ := json.Marshal(config) // secrets show nowhere
	fmt.Println(string(shown))

	config.URL, config.Method = "http://example.com", "GET"
	fmt.Println(config.Validate())
	// Output:
	// {"url":"https://example.com/hooks/reports","headers":{"X-Tenant":"acme"},"auth":{"type":"bearer","token":"[redacted]"},"signing_secrets":["[redacted]"]}
	// url: is plain http, which everyone on the way can read; use https, or set allow_http
	// method: is not POST, PUT or PATCH
}

// With a key pair, the receiver can verify requests and cannot make any. A rotation leads there
// from a shared secret: for a day, requests carry a signature of each kind.
func ExampleHandler_Rotate() {
	h := webhook.New()
	config := webhook.Config{
		URL:            "https://example.com/hooks/reports",
		SigningSecrets: []destination.Secret{webhook.GenerateSecret()},
		Signature:      webhook.SignatureV1a, // for what is generated from now on
	}
	now := time.Now()
	rotated, err := h.Rotate(config, handler.Rotation{Now: now, Until: now.Add(24 * time.Hour)})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range h.SigningSecrets(rotated) { // what the receiver verifies with
		prefix, _, _ := strings.Cut(s.Reveal(), "_")
		fmt.Println(prefix)
	}
	// Output:
	// whpk
	// whsec
}
