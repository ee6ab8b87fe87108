package storage_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

type shelfConfig struct {
	Shelf string `json:"shelf"`
	storage.Naming
	storage.Expiry
	storage.Attributes
}

func (shelfConfig) DestinationType() string { return "shelf" }

func (c shelfConfig) Validate() error {
	return errors.Join(destination.Require("shelf", c.Shelf), c.Naming.Validate(), c.Expiry.Validate(0), c.Attributes.Validate())
}

func (c shelfConfig) Layout() storage.Layout {
	return storage.Layout{Naming: c.Naming, Expiry: c.Expiry, Attributes: c.Attributes}
}

// shelf is a driver on a bucket in memory, with a connection that has to be given back.
type shelf struct {
	memory    *memory
	open      error
	places    []storage.Place
	lent      int
	forgotten []string
	swept     []time.Duration
}

type shelfBucket struct {
	*memory
	shelf *shelf
}

func (b shelfBucket) Close() error {
	b.shelf.lent--
	return nil
}

func (b shelfBucket) Sweep(_ context.Context, age time.Duration, names *storage.Template) (int, error) {
	if !names.Matcher()("objects/a") {
		return 0, errors.New("the template is another destination's")
	}
	b.shelf.swept = append(b.shelf.swept, age)
	return 1, nil
}

func newShelf() *shelf { return &shelf{memory: newMemory()} }

func (s *shelf) driver() storage.Driver[shelfConfig] {
	return storage.Driver[shelfConfig]{
		Type:   destination.TypeInfo{Type: "shelf", Title: "Shelf", Description: "Stores on a shelf."},
		Remote: true,
		Open: func(_ context.Context, env handler.Env, at storage.Place, _ shelfConfig) (storage.Bucket, error) {
			s.places = append(s.places, at)
			if s.open != nil || env.Client == nil {
				return nil, s.open
			}
			s.lent++
			return shelfBucket{s.memory, s}, nil
		},
		Permit: func(env handler.Env, c shelfConfig) error {
			if c.Shelf == "forbidden" {
				return destination.Invalid("shelf", "is not permitted")
			}
			return env.CheckHost("127.0.0.1")
		},
		Forget:    func(id string) { s.forgotten = append(s.forgotten, id) },
		Abandoned: func(c shelfConfig) time.Duration { return time.Duration(len(c.Shelf)) * time.Hour },
	}
}

var named = shelfConfig{Shelf: "left", Naming: storage.Naming{Name: "objects/{file}"}, Expiry: storage.Expiry{DeleteAfterDays: 2}}

func TestHandlerOfADriver(t *testing.T) {
	t.Parallel()
	s := newShelf()
	h := storage.Sweeping[shelfConfig]{Handler: storage.NewHandler(s.driver())}
	ctx := t.Context()
	req := handlertest.Request(t, h, named, payload.Bytes("a", []byte("content")))
	result, err := h.Deliver(ctx, req)
	if err != nil || result.Reference.ID != "objects/a" || !result.Removable {
		t.Fatalf("%+v, %v", result, err)
	}
	removal, err := h.Remove(ctx, &handler.RemoveRequest{
		Organization: "acme", DestinationID: "d", Config: named,
		Reference: handler.Reference{ID: "objects/a", Details: result.Reference.Details},
	})
	if err != nil || removal != handler.Removed || h.Retention(named) != 48*time.Hour {
		t.Errorf("%s, %v, %s", removal, err, h.Retention(named))
	}
	report, err := h.Test(ctx, &handler.TestRequest{Organization: "acme", DestinationID: "d", Config: named})
	if err != nil || !report.OK || report.Steps[0].Name != "credentials" || len(report.Steps) != 6 {
		t.Errorf("%+v, %v", report, err)
	}
	if err := h.Maintain(ctx, &handler.MaintainRequest{Organization: "acme", DestinationID: "d", Config: named}); err != nil {
		t.Error(err)
	}
	if !slices.Equal(s.swept, []time.Duration{4 * time.Hour}) {
		t.Errorf("swept %v", s.swept)
	}
	want := []storage.Place{
		{Organization: req.Organization, Destination: req.Destination.ID, Version: 1},
		{Organization: "acme", Destination: "d"}, {Organization: "acme"}, {Organization: "acme", Destination: "d"},
	}
	if !slices.Equal(s.places, want) {
		t.Errorf("opened for %+v, want %+v", s.places, want)
	}
	if s.lent != 0 {
		t.Errorf("%d buckets are not closed", s.lent)
	}
	if _, err := h.Bucket(ctx, "acme", named); err != nil || s.lent != 1 {
		t.Errorf("a bucket for the caller: %v, %d", err, s.lent)
	}
	h.Forget("d")
	if !slices.Equal(s.forgotten, []string{"d"}) {
		t.Errorf("forgotten %q", s.forgotten)
	}
	if info := h.Describe(); info.Type != "shelf" || info.Family != "storage" {
		t.Errorf("%+v", info)
	}
	if keys := []string{want[0].Key(), want[1].Key(), storage.Place{Version: 1}.Key()}; !slices.Equal(keys, []string{"1", "", ""}) {
		t.Errorf("keys %q", keys)
	}
}

func TestHandlerOfADriverRefuses(t *testing.T) {
	t.Parallel()
	s := newShelf()
	ctx := t.Context()
	h := storage.Sweeping[shelfConfig]{Handler: storage.NewHandler(s.driver())}
	request := &handler.Request{Config: named, Payload: handlertest.Content(t, payload.Bytes("a", nil))}
	wants := func(name string, err error, category handler.Category, text string) {
		t.Helper()
		if err == nil || handler.Classify(err).Category != category || !strings.HasPrefix(err.Error(), "shelf: "+text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := h.Deliver(ctx, request)
	wants("not open", err, handler.Internal, "the handler was not opened")
	if err := h.Open(handler.Env{}); err == nil || !strings.Contains(err.Error(), "shelf: the environment") {
		t.Errorf("an empty environment: %v", err)
	}
	handlertest.Open(t, h)

	wrong := "the config is a string"
	_, err = h.Deliver(ctx, &handler.Request{Config: "x", Payload: request.Payload})
	wants("Deliver", err, handler.Configuration, wrong)
	_, err = h.Test(ctx, &handler.TestRequest{Config: "x"})
	wants("Test", err, handler.Configuration, wrong)
	_, err = h.Remove(ctx, &handler.RemoveRequest{Config: "x"})
	wants("Remove", err, handler.Configuration, wrong)
	wants("Maintain", h.Maintain(ctx, &handler.MaintainRequest{Config: "x"}), handler.Configuration, wrong)
	if h.Retention("x") != 0 {
		t.Error("something that is no config has a retention")
	}
	_, err = h.Bucket(ctx, "acme", shelfConfig{})
	wants("Bucket", err, handler.Configuration, "shelf: is required")
	for raw, path := range map[string]string{`{"shelf":"forbidden"}`: "shelf", `{}`: "shelf", `{"shelf":"a","name":"{x}"}`: "name"} {
		var field *destination.FieldError
		if _, err := h.ParseConfig(json.RawMessage(raw)); !errors.As(err, &field) || field.Path != path {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if len(s.places) != 0 {
		t.Errorf("opened for %+v", s.places)
	}

	s.open = handler.Fail(handler.Authentication, errors.New("shelf: locked"))
	report, err := h.Test(ctx, &handler.TestRequest{Config: named})
	if err != nil || report.OK || len(report.Steps) != 1 || report.Steps[0].Finding != "shelf: locked" {
		t.Errorf("%+v, %v", report, err)
	}
	never := named
	never.Shelf = ""
	if err := h.Maintain(ctx, &handler.MaintainRequest{Config: never}); err != nil || len(s.places) != 1 {
		t.Errorf("a config that abandons nothing is opened: %v", err)
	}

	faulty := s.driver()
	faulty.Faults = []error{errors.New("shelf: an option is nil")}
	broken := storage.NewHandler(faulty)
	if err := broken.Open(handlertest.Env(t)); err == nil {
		t.Error("a fault of an option is not reported by Open")
	}
	_, err = broken.Deliver(ctx, request)
	wants("faulty", err, handler.Internal, "an option is nil")
}
