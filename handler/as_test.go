package handler_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// wrapper is what a host puts around a handler: it keeps Unwrap and adds something to Deliver
// alone.
type wrapper struct {
	handler.Handler
	attempts *int
}

func (w wrapper) Unwrap() handler.Handler { return w.Handler }

func (w wrapper) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	*w.attempts++
	return w.Handler.Deliver(ctx, req)
}

// described is a wrapper that implements one of the optional interfaces itself.
type described struct{ wrapper }

func (described) Describe() destination.TypeInfo { return destination.TypeInfo{Title: "Outer"} }

// opaque has no Unwrap.
type opaque struct{ handler.Handler }

func TestAs(t *testing.T) {
	t.Parallel()
	full := newComplete()
	var attempts int
	wrapped := wrapper{wrapper{full, &attempts}, &attempts}
	if d, ok := handler.As[handler.Describer](full); !ok || d.Describe().Title != "Full" {
		t.Error("the handler itself is not found")
	}
	if d, ok := handler.As[handler.Describer](wrapped); !ok || d.Describe().Title != "Full" {
		t.Error("the inner handler is not found")
	}
	if d, ok := handler.As[handler.Describer](described{wrapped}); !ok || d.Describe().Title != "Outer" {
		t.Error("the outer handler does not win over the inner one")
	}
	if inner, ok := handler.As[*complete](described{wrapped}); !ok || inner != full {
		t.Error("a concrete type is not found")
	}
	if _, ok := handler.As[handler.Describer](opaque{full}); ok {
		t.Error("found through a wrapper without Unwrap")
	}
	if _, ok := handler.As[handler.Describer](wrapper{nil, &attempts}); ok {
		t.Error("found in nothing")
	}
	if _, ok := handler.As[handler.Describer](nil); ok {
		t.Error("found in a nil handler")
	}
}

// A wrapped handler keeps every optional interface through the service.
func TestWrappedHandlerInAService(t *testing.T) {
	t.Parallel()
	full := newComplete()
	var attempts int
	kit := deliverytest.New(t, delivery.WithHandler("full", wrapper{full, &attempts}))
	types := kit.Types()
	if i := slices.IndexFunc(types, func(i destination.TypeInfo) bool { return i.Type == "full" }); i < 0 || types[i].Title != "Full" {
		t.Errorf("Describe: %+v", types)
	}
	ctx, org := t.Context(), kit.Org("acme")
	spec := destination.Spec{Label: "full", Config: fullConfig{Name: "a"}}
	if warnings, err := org.Destinations().Validate(ctx, spec); err != nil || len(warnings) != 1 || warnings[0].Code != "full" {
		t.Errorf("Warn: %v, %v", warnings, err)
	}
	if _, err := org.Destinations().Create(ctx, destination.Spec{Label: "bad", Config: fullConfig{}}); err == nil {
		t.Error("ParseConfig was not asked")
	}
	d, err := org.Destinations().Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if secrets, err := org.Destinations().SigningSecrets(ctx, d.ID); err != nil || len(secrets) != 1 || secrets[0].Reveal() != "completed" {
		t.Errorf("Complete and SigningSecrets: %d secrets, %v", len(secrets), err)
	}
	if report, err := org.Destinations().Test(ctx, d.ID); err != nil || !report.OK {
		t.Errorf("Test: %+v, %v", report, err)
	}
	send := func() {
		t.Helper()
		if _, err := org.Deliver(ctx, delivery.Request{
			Payload: payload.JSON(map[string]int{"a": 1}), Destinations: []string{d.ID},
			PerDestination: map[string]delivery.Override{d.ID: {Params: map[string]string{"folder": "x"}}},
		}); err != nil {
			t.Errorf("ParseParams: %v", err)
		}
		kit.Process()
	}
	send()
	if secret, err := org.Destinations().RotateSecret(ctx, d.ID, destination.Rotation{}); err != nil || secret.Reveal() != "rotated" {
		t.Errorf("Rotate: %v", err)
	}
	send() // with the new version of the config, so that what is kept for the old one is forgotten
	kit.Advance(2 * time.Hour)
	if err := org.Destinations().Delete(ctx, d.ID, destination.CancelPending); err != nil {
		t.Error(err)
	}
	if err := kit.Close(); err != nil {
		t.Error(err)
	}
	if attempts != 2 {
		t.Errorf("%d attempts went through the wrapper", attempts)
	}
	for _, call := range []string{
		"Open", "ParseConfig", "Complete", "SigningSecrets", "Rotate", "Warn", "Test", "ParseParams", "Deliver", "Maintain",
		"Retention", "Remove", "Forget", "Close",
	} {
		if !full.called(call) {
			t.Errorf("%s of the inner handler was not called", call)
		}
	}
}

type fullConfig struct {
	Name   string             `json:"name"`
	Secret destination.Secret `json:"secret,omitzero"`
}

func (fullConfig) DestinationType() string { return "full" }

func (c fullConfig) Validate() error { return destination.Require("name", c.Name) }

// complete implements every optional interface, and remembers what was called.
type complete struct {
	handler.Parser[fullConfig]
	mu    sync.Mutex
	calls map[string]bool
}

var (
	_ handler.ConfigParser = (*complete)(nil)
	_ handler.ParamsParser = (*complete)(nil)
	_ handler.Tester       = (*complete)(nil)
	_ handler.Describer    = (*complete)(nil)
	_ handler.Signer       = (*complete)(nil)
	_ handler.Warner       = (*complete)(nil)
	_ handler.Opener       = (*complete)(nil)
	_ handler.Forgetter    = (*complete)(nil)
	_ handler.Remover      = (*complete)(nil)
	_ handler.Maintainer   = (*complete)(nil)
	_ io.Closer            = (*complete)(nil)
)

func newComplete() *complete { return &complete{calls: map[string]bool{}} }

func (f *complete) note(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[call] = true
}

func (f *complete) called(call string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

func (f *complete) Deliver(context.Context, *handler.Request) (*handler.Result, error) {
	f.note("Deliver")
	return &handler.Result{Removable: true, Reference: handler.Reference{ID: "a"}}, nil
}

func (f *complete) ParseConfig(raw json.RawMessage) (any, error) {
	f.note("ParseConfig")
	return f.Parser.ParseConfig(raw)
}

func (f *complete) ParseParams(raw json.RawMessage) error {
	f.note("ParseParams")
	if string(raw) != `{"folder":"x"}` {
		return errors.New("unexpected params")
	}
	return nil
}

func (f *complete) Test(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
	f.note("Test")
	return &destination.TestReport{OK: true, Steps: []destination.TestStep{{Name: "connect", OK: true}}}, nil
}

func (f *complete) Describe() destination.TypeInfo {
	return destination.TypeInfo{Type: "full", Title: "Full"}
}

func (f *complete) Complete(config, _ any) (any, error) {
	f.note("Complete")
	c := config.(fullConfig)
	if !c.Secret.IsSet() {
		c.Secret = destination.NewSecret("completed")
	}
	return c, nil
}

func (f *complete) SigningSecrets(config any) []destination.Secret {
	f.note("SigningSecrets")
	return []destination.Secret{config.(fullConfig).Secret}
}

func (f *complete) Rotate(config any, _ handler.Rotation) (any, error) {
	f.note("Rotate")
	c := config.(fullConfig)
	c.Secret = destination.NewSecret("rotated")
	return c, nil
}

func (f *complete) Warn(any) []*destination.FieldError {
	f.note("Warn")
	return []*destination.FieldError{{Path: "name", Code: "full", Message: "is full"}}
}

func (f *complete) Open(handler.Env) error { f.note("Open"); return nil }

func (f *complete) Close() error { f.note("Close"); return nil }

func (f *complete) Forget(string) { f.note("Forget") }

func (f *complete) Retention(any) time.Duration { f.note("Retention"); return time.Minute }

func (f *complete) Remove(context.Context, *handler.RemoveRequest) (handler.Removal, error) {
	f.note("Remove")
	return handler.Removed, nil
}

func (f *complete) Maintain(context.Context, *handler.MaintainRequest) error {
	f.note("Maintain")
	return nil
}
