// Package configs checks, seals and opens the configs of destinations.
//
// A config exists in three forms: what a caller gives ([destination.Config]), the redacted JSON
// that is stored in clear and shown, and the sealed JSON with all secrets, which is stored only if
// there are any. What a handler works with is parsed from the last.
//
// The sealed form is bound to its organization, its destination and its ConfigVersion: see
// [sqlstore.DestinationRow] for the rule of the two versions, which [Configs.Replace] applies.
package configs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// ErrNoKeys says that a config holds secrets and that the service has no key to seal them with.
var ErrNoKeys = errors.New("delivery: the config holds secrets, which are never stored in clear; " +
	"give the service keys with delivery.WithKeys")

const maxConfig = 256 << 10 // bytes

// Configs works with the keys and types of a service. It may be used by many goroutines at once.
type Configs struct{ fixed *settings.Fixed }

// New returns Configs for a service.
func New(fixed *settings.Fixed) *Configs { return &Configs{fixed} }

// Type returns the registered type of a name. An unknown one is a *destination.FieldError.
func (c *Configs) Type(name string) (*settings.Type, error) {
	if t := c.fixed.Types[name]; t != nil {
		return t, nil
	}
	return nil, &destination.FieldError{Path: "type", Code: "unknown", Message: fmt.Sprintf(
		"there is no handler for %.100q; register one with delivery.WithHandler (there are: %q)", name,
		c.fixed.TypeNames(),
	)}
}

// Parse has the handler of a type check and complete a config, and returns what is to be stored.
// stored is the current config with its secrets in clear, nil on create; a redacted placeholder in
// config keeps the stored value.
func (c *Configs) Parse(typ string, config destination.Config, stored json.RawMessage) (any, error) {
	t, err := c.Type(typ)
	if err != nil {
		return nil, err
	}
	raw, err := normalize(typ, config)
	if err == nil && stored != nil {
		raw, err = destination.FillRedacted(raw, stored)
	}
	if err != nil {
		return nil, destination.Within("config", err)
	}
	parsed, err := t.ParseConfig(raw)
	if err == nil && t.Signer != nil {
		var before any
		if stored != nil {
			before, _ = t.ParseConfig(stored) // one that is no longer valid has nothing to keep
		}
		parsed, err = t.Signer.Complete(parsed, before)
	}
	if err == nil {
		_, err = destination.Reveal(parsed) // no placeholder is left
	}
	return parsed, destination.Within("config", err)
}

// normalize gives a config the form it is parsed from: JSON that every database takes.
func normalize(typ string, config destination.Config) (json.RawMessage, error) {
	if t := config.DestinationType(); t != typ {
		return nil, destination.Invalid("", "is of type %.100q, the destination of type %q", t, typ)
	}
	raw, err := destination.Raw(config)
	switch {
	case err != nil:
		return nil, err
	case len(raw) > maxConfig:
		return nil, destination.Invalid("", "has %d bytes, at most %d are allowed", len(raw), maxConfig)
	case !utf8.Valid(raw):
		return nil, destination.Invalid("", "is not valid UTF-8")
	case bytes.Contains(raw, []byte(`\u0000`)):
		return nil, destination.Invalid("", "contains a NUL character")
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, destination.Invalid("", "has a number that is too large")
	}
	exact := json.NewDecoder(bytes.NewReader(raw))
	exact.UseNumber()
	if err := exact.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v) // drops what JSON can express and text cannot, such as "\ud800"
}

// Raw returns the stored config of a destination with its secrets in clear.
func (c *Configs) Raw(ctx context.Context, d *sqlstore.DestinationRow) (json.RawMessage, error) {
	if d.Sealed == nil {
		return d.Config, nil
	}
	if c.fixed.Keys == nil {
		return nil, errors.New("its config is sealed, and the service has no keys; give it delivery.WithKeys")
	}
	return c.fixed.Keys.Open(ctx, d.Sealed, binding(d))
}

// Open returns the stored config of a destination as its handler's type.
func (c *Configs) Open(ctx context.Context, t *settings.Type, d *sqlstore.DestinationRow) (any, error) {
	raw, err := c.Raw(ctx, d)
	if err != nil {
		return nil, err
	}
	return t.ParseConfig(raw)
}

// Seal puts the stored forms of a parsed config into d: the redacted one and, if it has secrets,
// the sealed one. Without keys that is ErrNoKeys.
func (c *Configs) Seal(ctx context.Context, d *sqlstore.DestinationRow, parsed any) error {
	revealed, err := destination.Reveal(parsed)
	if err != nil {
		return err
	}
	if d.Config, err = json.Marshal(parsed); err != nil {
		return err
	}
	d.Sealed = nil
	if bytes.Equal(revealed, d.Config) {
		return nil
	}
	if c.fixed.Keys == nil {
		return ErrNoKeys
	}
	if d.Sealed, err = c.fixed.Keys.Seal(ctx, revealed, binding(d)); err != nil {
		return fmt.Errorf("delivery: sealing the config: %w", err)
	}
	return nil
}

// Replace is Seal for the next version of a stored destination.
func (c *Configs) Replace(ctx context.Context, d *sqlstore.DestinationRow, parsed any) error {
	d.ConfigVersion = d.NextVersion()
	return c.Seal(ctx, d, parsed)
}

// Rewrap seals a stored config with the primary key, and reports whether another key had sealed it.
func (c *Configs) Rewrap(ctx context.Context, d *sqlstore.DestinationRow) (sealed []byte, changed bool, err error) {
	return c.fixed.Keys.Rewrap(ctx, d.Sealed, binding(d))
}

// binding is what the sealed config of a destination is bound to.
func binding(d *sqlstore.DestinationRow) seal.AD {
	return seal.AD{Organization: d.Organization, Subject: d.ID, Version: d.ConfigVersion}
}
