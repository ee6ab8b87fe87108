package testkit

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// ParamsHandler takes params.
type ParamsHandler struct{}

// Deliver delivers everything.
func (ParamsHandler) Deliver(context.Context, *handler.Request) (*handler.Result, error) {
	return nil, nil
}

// ParseParams takes an object with the field "to".
func (ParamsHandler) ParseParams(raw json.RawMessage) error {
	var p struct {
		To string `json:"to"`
	}
	if err := handler.Decode(raw, &p); err != nil {
		return err
	}
	return destination.Require("to", p.To)
}

// Script is the config of the fake destinations of these tests.
type Script struct {
	Name  string             `json:"name"`
	Token destination.Secret `json:"token"`
}

// DestinationType returns "fake".
func (Script) DestinationType() string { return "fake" }

// Validate requires a name.
func (s Script) Validate() error { return destination.Require("name", s.Name) }

// Fake is a handler that does what a test tells it to, and remembers what it was asked.
type Fake struct {
	handler.Parser[Script]
	Mu       sync.Mutex
	Requests []handler.Request
	Contents []string
	Do       func(ctx context.Context, req *handler.Request) (*handler.Result, error)
}

// Outage returns a handler whose attempts fail for as long as failing is true, as it is at first.
func Outage() (f *Fake, failing *atomic.Bool) {
	failing = new(atomic.Bool)
	failing.Store(true)
	return &Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
		if failing.Load() {
			return nil, errors.New("no")
		}
		return nil, nil
	}}, failing
}

// Deliver records the request and calls Do, if there is one.
func (f *Fake) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	b, err := req.Payload.ReadAll(ctx, 100<<20)
	if err != nil {
		return nil, err
	}
	f.Mu.Lock()
	f.Requests = append(f.Requests, *req)
	f.Contents = append(f.Contents, string(b))
	deliver := f.Do
	f.Mu.Unlock()
	if deliver == nil {
		return nil, nil
	}
	return deliver(ctx, req)
}

// Count counts the requests.
func (f *Fake) Count() int {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	return len(f.Requests)
}

// Topics lists the topics of the requests.
func (f *Fake) Topics() []string {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	var all []string
	for _, r := range f.Requests {
		all = append(all, r.Topic)
	}
	return all
}

// Switchable is a handler whose destinations fail as long as they are said to.
type Switchable struct {
	Fake
	failing sync.Map // error by destination
}

// NewSwitchable returns one whose destinations do not fail.
func NewSwitchable() *Switchable {
	s := &Switchable{}
	s.Do = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
		if err, ok := s.failing.Load(r.Destination.ID); ok {
			return nil, err.(error)
		}
		return &handler.Result{Reference: handler.Reference{ID: "theirs"}}, nil
	}
	return s
}

// Fail has a destination fail with an error.
func (s *Switchable) Fail(d *destination.Destination, err error) { s.failing.Store(d.ID, err) }

// Heal ends a Fail.
func (s *Switchable) Heal(d *destination.Destination) { s.failing.Delete(d.ID) }

// ErrNever is a failure that is not tried again.
var ErrNever = handler.Permanent(errors.New("never"))

// MemorySource is a payload.Source of texts, by "organization/ref".
type MemorySource map[string]string

// Open implements payload.Source.
func (m MemorySource) Open(_ context.Context, organization, ref string) (*payload.Content, error) {
	text, ok := m[organization+"/"+ref]
	if !ok {
		return nil, os.ErrNotExist
	}
	return payload.NewContent(payload.Info{Size: int64(len(text)), ContentType: "text/plain"}, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text[offset:])), nil
	}), nil
}
