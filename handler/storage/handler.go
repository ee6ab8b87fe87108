package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// Config is the config of a storage destination. A driver's config embeds Naming and whichever of
// Expiry and Attributes it supports.
type Config interface {
	destination.Config
	// Validate reports every faulty field.
	Validate() error
	// Layout returns the parts of the config that Handler works with.
	Layout() Layout
}

// Layout says how objects are named, what is kept with them and how long they stay.
type Layout struct {
	Naming
	Expiry
	Attributes
}

// Driver is what one kind of storage adds to Handler. Type and Open are required.
type Driver[C Config] struct {
	// Type describes the destination type. Its Type field also prefixes errors. Family is set by
	// NewHandler.
	Type destination.TypeInfo
	// Open returns the bucket of a config, with credentials that work. Its errors are classified
	// (handler.Error). A bucket that is an io.Closer is closed after the call that it was opened
	// for.
	Open func(ctx context.Context, env handler.Env, at Place, c C) (Bucket, error)
	// Remote says that Open connects to another machine. The handler then refuses an Env without
	// Dial or Client, works only once it is open, and reports Open as a step of connection tests.
	Remote bool
	// Step names Open in connection tests. Default: "credentials".
	Step string
	// Permit reports the fields of a valid config that the host does not permit. Default: it
	// permits all.
	Permit func(env handler.Env, c C) error
	// Forget drops what is kept for a destination. Default: nothing is kept.
	Forget func(destinationID string)
	// Abandoned returns the age from which Sweeping removes what dead attempts left behind, 0 or
	// less for never. Only Sweeping needs it.
	Abandoned func(c C) time.Duration
	// Faults are errors of the driver's options, for Open to report.
	Faults []error
}

// Place is whom a bucket is opened for.
type Place struct {
	Organization string
	Destination  string // its id; "" before the destination is saved, and for other uses than deliveries
	Version      int64  // of the destination; 0 where it is not known
}

// Key returns the version as a key for what is kept per destination and version, "" where nothing
// can be kept.
func (p Place) Key() string {
	if p.Destination == "" || p.Version == 0 {
		return ""
	}
	return strconv.FormatInt(p.Version, 10)
}

// Handler delivers to the storage destinations of one type. It does everything but opening a
// bucket, which its Driver does: names, creation only if absent, comparison, connection tests with
// a canary, retention and removal. It is to be embedded in a driver's own handler, and is safe for
// concurrent use once it is open.
type Handler[C Config] struct {
	driver Driver[C]
	env    handler.Env
	opened bool
}

// NewHandler returns a handler for a driver. It connects nowhere.
func NewHandler[C Config](d Driver[C]) *Handler[C] {
	d.Type.Family = "storage"
	if d.Step == "" {
		d.Step = "credentials"
	}
	return &Handler[C]{driver: d, env: handler.Env{Now: time.Now}}
}

// Open implements handler.Opener.
func (h *Handler[C]) Open(env handler.Env) error {
	errs := h.driver.Faults
	if h.driver.Remote && (env.Client == nil || env.Dial == nil) {
		errs = append(errs, h.errorf("the environment has no Client or no Dial"))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if env.Now == nil {
		env.Now = time.Now
	}
	h.env, h.opened = env, true
	return nil
}

// ParseConfig implements handler.ConfigParser; it returns a C. It also checks what the host
// permits, such as the hosts of the network policy and the credentials that it lends.
func (h *Handler[C]) ParseConfig(raw json.RawMessage) (any, error) {
	var c C
	if err := handler.Decode(raw, &c); err != nil {
		return nil, err
	}
	if err := h.check(c); err != nil {
		return nil, err
	}
	return c, nil
}

func (h *Handler[C]) check(c C) error {
	if h.driver.Permit == nil {
		return c.Validate()
	}
	return errors.Join(c.Validate(), h.driver.Permit(h.env, c))
}

// Describe implements handler.Describer.
func (h *Handler[C]) Describe() destination.TypeInfo { return h.driver.Type }

// Deliver implements handler.Handler.
func (h *Handler[C]) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	at := Place{Organization: req.Organization}
	if req.Destination != nil {
		at.Destination, at.Version = req.Destination.ID, req.Destination.Version
	}
	t, err := h.target(ctx, at, req.Config)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.Deliver(ctx, req)
}

// Bucket returns the bucket of a config for other uses than a delivery, such as a store of
// payloads. Its credentials hold for as long as those of the config can be renewed. If it is an
// io.Closer, the caller closes it.
func (h *Handler[C]) Bucket(ctx context.Context, organization string, c C) (Bucket, error) {
	if err := h.check(c); err != nil {
		return nil, handler.Fail(handler.Configuration, h.errorf("%w", err))
	}
	return h.open(ctx, Place{Organization: organization}, c)
}

// Test implements handler.Tester: it opens the bucket, and writes, reads and deletes an object.
func (h *Handler[C]) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	if _, err := h.config(req.Config); err != nil {
		return nil, err
	}
	start := time.Now()
	t, err := h.target(ctx, Place{Organization: req.Organization}, req.Config)
	defer t.close()
	step := destination.TestStep{
		Name: h.driver.Step, OK: err == nil, Latency: destination.Duration(time.Since(start)),
	}
	if err != nil {
		step.Finding = err.Error()
	} else if !h.driver.Remote {
		return t.Test(ctx, req, h.env.Now()), nil
	}
	return t.Test(ctx, req, h.env.Now(), step), nil
}

// Forget implements handler.Forgetter.
func (h *Handler[C]) Forget(destinationID string) {
	if h.driver.Forget != nil {
		h.driver.Forget(destinationID)
	}
}

// Retention implements handler.Remover.
func (h *Handler[C]) Retention(config any) time.Duration {
	c, err := h.config(config)
	if err != nil {
		return 0
	}
	return c.Layout().Retention()
}

// Remove implements handler.Remover.
func (h *Handler[C]) Remove(ctx context.Context, req *handler.RemoveRequest) (handler.Removal, error) {
	at := Place{Organization: req.Organization, Destination: req.DestinationID}
	t, err := h.target(ctx, at, req.Config)
	if err != nil {
		return handler.NotRemoved, err
	}
	defer t.close()
	return Remove(ctx, t.Bucket, req)
}

// target opens the bucket of a parsed config.
func (h *Handler[C]) target(ctx context.Context, at Place, config any) (Target, error) {
	c, err := h.config(config)
	if err != nil {
		return Target{}, err
	}
	b, err := h.open(ctx, at, c)
	if err != nil {
		return Target{}, err
	}
	layout := c.Layout()
	return Target{Bucket: b, Naming: layout.Naming, Attributes: layout.Attributes}, nil
}

func (h *Handler[C]) open(ctx context.Context, at Place, c C) (Bucket, error) {
	if len(h.driver.Faults) > 0 {
		return nil, handler.Fail(handler.Internal, errors.Join(h.driver.Faults...))
	}
	if h.driver.Remote && !h.opened {
		return nil, handler.Fail(handler.Internal, h.errorf("the handler was not opened"))
	}
	return h.driver.Open(ctx, h.env, at, c)
}

func (h *Handler[C]) config(config any) (C, error) {
	c, ok := config.(C)
	if !ok {
		return c, handler.Fail(handler.Configuration, h.errorf("the config is a %T, not a %T", config, c))
	}
	return c, nil
}

func (h *Handler[C]) errorf(format string, args ...any) error {
	return fmt.Errorf(h.driver.Type.Type+": "+format, args...)
}

// close closes the bucket, if there is one, after the call that it was opened for. What was written
// was flushed by Put.
func (t Target) close() {
	if c, ok := t.Bucket.(io.Closer); ok {
		_ = c.Close()
	}
}

// Sweeping is a Handler of a driver whose attempts can leave something behind: its buckets are
// Sweepers.
type Sweeping[C Config] struct{ *Handler[C] }

// Maintain implements handler.Maintainer: it removes what dead attempts left behind.
func (h Sweeping[C]) Maintain(ctx context.Context, req *handler.MaintainRequest) error {
	c, err := h.config(req.Config)
	if err != nil {
		return err
	}
	template, err := c.Layout().Template()
	age := h.driver.Abandoned(c)
	if err != nil || age <= 0 {
		return nil
	}
	t, err := h.target(ctx, Place{Organization: req.Organization, Destination: req.DestinationID}, req.Config)
	if err != nil {
		return err
	}
	defer t.close()
	s, ok := t.Bucket.(Sweeper)
	if !ok {
		return nil
	}
	_, err = s.Sweep(ctx, age, template)
	return err
}
