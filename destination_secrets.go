package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// SigningSecrets returns the secrets that verify this destination's signatures, newest first. Use
// it to show a generated secret to the receiver. It is for the destination's owners only.
func (d *Destinations) SigningSecrets(ctx context.Context, id string) ([]destination.Secret, error) {
	row, err := d.get(ctx, id, access.ReadSecrets)
	if err != nil {
		return nil, err
	}
	t := d.o.s.settings.Types[row.Type]
	if t == nil || t.Signer == nil {
		return nil, fmt.Errorf("delivery: destinations of type %q do not sign: %w", row.Type, errors.ErrUnsupported)
	}
	config, err := d.o.s.configs.Open(ctx, t, row)
	if err != nil {
		return nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	return t.Signer.SigningSecrets(config), nil
}

const (
	defaultOverlap = 24 * time.Hour
	maxOverlap     = 90 * 24 * time.Hour
)

// RotateSecret gives a destination a new signing secret and returns it. The previous secrets go on
// signing as well until the overlap ends, so that the receiver can change over at any time until
// then. For types without signing secrets the error is errors.ErrUnsupported.
func (d *Destinations) RotateSecret(
	ctx context.Context, id string, r destination.Rotation,
) (destination.Secret, error) {
	overlap := time.Duration(r.Overlap)
	if overlap == 0 {
		overlap = defaultOverlap
	}
	if overlap > maxOverlap {
		return destination.Secret{}, destination.NewValidationError(
			"rotation",
			destination.Invalid("overlap", "%s is above %s", overlap, maxOverlap),
		)
	}
	now := d.o.s.settings.Now().UTC()
	var secret destination.Secret
	updated, err := d.update(ctx, id, access.WriteDestinations, destination.Patch{},
		func(ctx context.Context, row *sqlstore.DestinationRow, _ destination.Patch) error {
			t := d.o.s.settings.Types[row.Type]
			if t == nil || t.Signer == nil {
				return fmt.Errorf(
					"delivery: destinations of type %q have no signing secrets: %w", row.Type,
					errors.ErrUnsupported,
				)
			}
			return d.reconfigure(ctx, row, nil, func(stored json.RawMessage) (destination.Config, error) {
				config, err := t.ParseConfig(stored)
				if err == nil {
					config, err = t.Signer.Rotate(
						config,
						handler.Rotation{Secret: r.Secret, Now: now, Until: now.Add(overlap)},
					)
				}
				if err != nil {
					return nil, destination.Within("config", err)
				}
				if all := t.Signer.SigningSecrets(config); len(all) > 0 {
					secret = all[0]
				}
				return destination.As(row.Type, config), nil
			})
		})
	if err != nil {
		return destination.Secret{}, err
	}
	reason := "the previous secrets are used until " + stamp(now.Add(overlap))
	if overlap < 0 {
		reason = "the previous secrets are no longer used"
	}
	d.o.s.bus.Publish(event.Event{
		Kind:         event.SecretRotated,
		Organization: d.o.name,
		Destination:  updated.ID,
		Version:      updated.Version,
		Reason:       reason,
	})
	return secret, nil
}
