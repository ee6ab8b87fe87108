package handlertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/payload"
)

// Env returns what a service gives its handlers, with loopback addresses allowed. Its connections
// are closed when the test ends. It logs to the test's own output.
func Env(t testing.TB) handler.Env {
	t.Helper()
	return environment(t, t.Output())
}

func environment(t testing.TB, log io.Writer) handler.Env {
	t.Helper()
	guard := netguard.New(netguard.Policy{Loopback: true})
	t.Cleanup(guard.CloseIdle)
	return handler.Env{
		Logger:    slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:       time.Now,
		Dial:      guard.DialContext,
		Client:    guard.Client(),
		CheckHost: guard.CheckHost,
	}
}

// Open opens h with Env, and closes it when the test ends, as far as h can be opened and closed.
func Open(t testing.TB, h handler.Handler) {
	t.Helper()
	open(t, h, Env(t))
}

func open(t testing.TB, h handler.Handler, env handler.Env) {
	t.Helper()
	if o, ok := handler.As[handler.Opener](h); ok {
		if err := o.Open(env); err != nil {
			t.Fatalf("Open: %v", err)
		}
	}
	if c, ok := handler.As[io.Closer](h); ok {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

// Parse takes config the way of a service that saves and later uses it: to JSON with its secrets,
// through h's ParseConfig and Complete, to JSON again, through ParseConfig again. It returns
// Request.Config and the redacted form.
func Parse(t testing.TB, h handler.Handler, config destination.Config) (parsed any, redacted json.RawMessage) {
	t.Helper()
	raw, err := destination.Raw(config)
	if err != nil {
		t.Fatalf("the config: %v", err)
	}
	parser, ok := handler.As[handler.ConfigParser](h)
	if !ok {
		return raw, raw
	}
	parsed, err = parser.ParseConfig(raw)
	if err != nil {
		t.Fatalf("ParseConfig: %v", err)
	}
	if c, ok := handler.As[handler.Signer](h); ok {
		if parsed, err = c.Complete(parsed, nil); err != nil {
			t.Fatalf("Complete: %v", err)
		}
	}
	if raw, err = destination.Reveal(parsed); err != nil {
		t.Fatalf("what ParseConfig returned cannot be stored: %v", err)
	}
	if parsed, err = parser.ParseConfig(raw); err != nil {
		t.Fatalf("ParseConfig refuses the stored form of what it returned: %v", err)
	}
	if redacted, err = json.Marshal(parsed); err != nil {
		t.Fatalf("the redacted form: %v", err)
	}
	return parsed, redacted
}

// Request opens h and returns a first attempt, with ids of its own, to deliver content to a
// destination of that config. The content must not be a payload.Ref.
func Request(t testing.TB, h handler.Handler, config destination.Config, content payload.Payload) *handler.Request {
	t.Helper()
	Open(t, h)
	return request(t, h, config, Content(t, content))
}

func request(t testing.TB, h handler.Handler, config destination.Config, content *payload.Content) *handler.Request {
	t.Helper()
	parsed, redacted := Parse(t, h, config)
	now := time.Now().UTC()
	delivery := newID(t)
	return &handler.Request{
		MessageID:    newID(t),
		DeliveryID:   delivery,
		ItemID:       newID(t),
		Attempt:      1,
		Organization: "handlertest",
		Destination: &destination.Destination{
			ID: newID(t), Organization: "handlertest", Type: config.DestinationType(), Label: "handlertest",
			Config: redacted, Version: 1, CreatedAt: now, UpdatedAt: now,
		},
		Config:      parsed,
		Payload:     content,
		Topic:       "handlertest.checked",
		Metadata:    map[string]string{"suite": "handlertest"},
		CreatedAt:   now,
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
}

// Content reads p into memory and returns it as a handler reads it.
func Content(t testing.TB, p payload.Payload) *payload.Content {
	t.Helper()
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		t.Fatalf("the payload: %v", err)
	}
	sum := sha256.Sum256(b.Bytes())
	info := payload.Info{
		Name: p.Name(), ContentType: p.ContentType(), Size: int64(b.Len()), SHA256: hex.EncodeToString(sum[:]),
	}
	return payload.NewContent(info, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes()[offset:])), nil
	})
}

func newID(t testing.TB) string {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}
