package settings_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
)

// panicking is a handler whose every method panics.
type panicking struct{}

func (panicking) Deliver(context.Context, *handler.Request) (*handler.Result, error) {
	panic("deliver")
}
func (panicking) ParseConfig(json.RawMessage) (any, error)                 { panic("parse") }
func (panicking) Maintain(context.Context, *handler.MaintainRequest) error { panic("maintain") }
func (panicking) Retention(any) time.Duration                              { panic("retention") }
func (panicking) Forget(string)                                            { panic("forget") }

func (panicking) Test(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
	panic("test")
}

func (panicking) Remove(context.Context, *handler.RemoveRequest) (handler.Removal, error) {
	panic("remove")
}

// A panic of a handler is an error of the call, whoever makes it.
func TestPanicsOfHandlersAreErrors(t *testing.T) {
	t.Parallel()
	typ := settings.NewType("panicking", panicking{})
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"parse":     func() error { _, err := typ.ParseConfig(nil); return err },
		"test":      func() error { _, err := typ.Test(ctx, time.Second, &handler.TestRequest{}); return err },
		"maintain":  func() error { return typ.Maintain(ctx, &handler.MaintainRequest{}) },
		"retention": func() error { _, err := typ.Retention(nil); return err },
		"remove":    func() error { _, err := typ.Remove(ctx, &handler.RemoveRequest{}); return err },
		"forget":    func() error { return typ.Forget("d") },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "panicked: "+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A type without an optional interface answers for it.
func TestTypeWithoutOptionalInterfaces(t *testing.T) {
	t.Parallel()
	typ := settings.NewType("plain", struct{ handler.Handler }{})
	raw := json.RawMessage(`{}`)
	if config, err := typ.ParseConfig(raw); err != nil || string(config.(json.RawMessage)) != "{}" {
		t.Errorf("the config is %v, %v", config, err)
	}
	_, err := typ.Test(t.Context(), time.Second, &handler.TestRequest{})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a test is %v", err)
	}
	if keep, err := typ.Retention(nil); keep != 0 || err != nil {
		t.Errorf("the retention is %v, %v", keep, err)
	}
	if err := typ.Forget("d"); err != nil {
		t.Error(err)
	}
}

// A policy is swapped as a whole: no reader sees half of one, and a builder that is not applied
// changes nothing.
func TestPolicyIsSwappedAsAWhole(t *testing.T) {
	t.Parallel()
	s := settings.NewBuilder().Build()
	before := s.Policy()
	b := s.Reconfigure()
	if err := b.Fix("workers", func(f *settings.Fixed) error { f.Workers = 1; return nil }); !errors.Is(err, settings.ErrFixed) {
		t.Errorf("a fixed setting: %v", err)
	}
	if err := b.Change("quotas", func(p, defaults *settings.Policy) error {
		p.Quotas.Batch = defaults.Quotas.Batch + 1
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if s.Policy() != before {
		t.Error("a builder changed the policy in force")
	}
	s.Apply(b)
	after := s.Policy()
	if after.Quotas.Batch != before.Quotas.Batch+1 || before.Quotas.Batch != settings.DefaultPolicy().Quotas.Batch {
		t.Errorf("before %d, after %d", before.Quotas.Batch, after.Quotas.Batch)
	}
	again := s.Reconfigure()
	_ = again.Change("quotas", func(p, defaults *settings.Policy) error { p.Quotas = defaults.Quotas; return nil })
	s.Apply(again)
	if got := s.Policy().Quotas; got != settings.DefaultPolicy().Quotas {
		t.Errorf("the defaults are %+v", got)
	}
}
