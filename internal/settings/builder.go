package settings

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/payload"
)

// Builder collects what options set.
type Builder struct {
	Fixed
	Policy
	Defaults Policy // what a zero field of an option stands for

	running bool // the service runs: what is fixed stays
	given   map[string]bool
}

// NewBuilder returns a Builder that holds the defaults.
func NewBuilder() *Builder {
	return &Builder{
		Fixed: Fixed{
			Types: map[string]*Type{}, Sources: map[string]payload.Source{},
			Workers: 64, Lease: 30 * time.Second, SlowLook: 5 * time.Millisecond,
			Authorizer: access.ByRole(),
			Logger:     slog.Default(), //nolint:forbidigo // until an option names another
		},
		Policy: DefaultPolicy(), Defaults: DefaultPolicy(),
		given: map[string]bool{},
	}
}

// ErrFixed says that an option sets what cannot change while the service runs.
var ErrFixed = errors.New("it is fixed for the life of the service; close it and make a new one")

// Fix runs set for an option that sets something fixed. Each option may be given once.
func (b *Builder) Fix(option string, set func(f *Fixed) error) error {
	if b.running {
		return fmt.Errorf("delivery: %s: %w", option, ErrFixed)
	}
	return b.once(option, func() error { return set(&b.Fixed) })
}

// Change runs set for an option that may also be given while the service runs. A zero field of what
// the option is given stands for the one in defaults.
func (b *Builder) Change(option string, set func(p, defaults *Policy) error) error {
	return b.once(option, func() error { return set(&b.Policy, &b.Defaults) })
}

func (b *Builder) once(option string, set func() error) error {
	if b.given[option] {
		return fmt.Errorf("delivery: %s is given twice", option)
	}
	b.given[option] = true
	if err := set(); err != nil {
		return fmt.Errorf("delivery: %s: %w", option, err)
	}
	return nil
}

// Build returns settings with what the Builder holds.
func (b *Builder) Build() *Settings {
	s := &Settings{Fixed: b.Fixed, defaults: b.Defaults}
	s.Apply(b)
	return s
}
