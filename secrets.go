package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// SigningSecrets returns what verifies a destination's signatures, the newest first: to show a generated secret to who will
// verify with it. It is for the destination's owners only.
func (d *Destinations) SigningSecrets(ctx context.Context, id string) ([]destination.Secret, error) {
	row, err := d.get(ctx, id, access.ReadSecrets)
	if err != nil {
		return nil, err
	}
	t := d.typ(row.Type)
	if t == nil || t.Signer == nil {
		return nil, fmt.Errorf("delivery: destinations of type %q do not sign: %w", row.Type, errors.ErrUnsupported)
	}
	config, err := engine.OpenConfig(ctx, d.o.s.settings.Keys, t, row)
	if err != nil {
		return nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	return t.Signer.SigningSecrets(config), nil
}

const (
	defaultOverlap = 24 * time.Hour
	mostOverlap    = 90 * 24 * time.Hour
)

// RotateSecret gives a destination a new signing secret, and returns what verifies it. The secrets so far sign beside it
// until the overlap ends, so that the receiver can change over at any time within. Types without such secrets are
// errors.ErrUnsupported.
func (d *Destinations) RotateSecret(ctx context.Context, id string, r destination.Rotation) (destination.Secret, error) {
	overlap := time.Duration(r.Overlap)
	if overlap == 0 {
		overlap = defaultOverlap
	}
	if overlap > mostOverlap {
		return destination.Secret{}, destination.NewValidationError("rotation", destination.Invalid("overlap", "%s is above %s", overlap, mostOverlap))
	}
	now := d.o.s.settings.Now().UTC()
	var secret destination.Secret
	updated, err := d.update(ctx, id, access.WriteDestinations, destination.Patch{},
		func(ctx context.Context, row *sqlstore.Destination, _ destination.Patch) error {
			t := d.typ(row.Type)
			if t == nil || t.Rotator == nil || t.Signer == nil {
				return fmt.Errorf("delivery: destinations of type %q have no signing secrets: %w", row.Type, errors.ErrUnsupported)
			}
			return d.reconfigure(ctx, row, nil, func(stored json.RawMessage) (destination.Config, error) {
				config, err := engine.ParseConfig(t, stored)
				if err == nil {
					config, err = t.Rotator.Rotate(config, handler.Rotation{Secret: r.Secret, Now: now, Until: now.Add(overlap)})
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
	reason := "the secrets so far are used until " + stamp(now.Add(overlap))
	if overlap < 0 {
		reason = "the secrets so far are no longer used"
	}
	d.o.s.publish(Event{Kind: SecretRotated, Organization: d.o.name, Destination: updated.ID, Version: updated.Version, Reason: reason})
	return secret, nil
}

// KeysInUse counts the configs that each of the service's keys has sealed; those of keys that it was not given are under "".
// A key whose count is 0 in the service where it is no longer the primary one can be left out of WithKeys, once no process
// seals with it.
func (s *DeliveryService) KeysInUse(ctx context.Context) (map[string]int, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	counts := map[string]int{}
	err := s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		unknown, err := tx.CountSealed(ctx, nil)
		if err != nil || s.settings.Keys == nil {
			counts[""] = unknown
			return err
		}
		for _, id := range s.settings.Keys.IDs() {
			if counts[id], err = tx.CountSealed(ctx, seal.Prefix(id)); err != nil {
				return err
			}
			unknown -= counts[id]
		}
		counts[""] = unknown
		return nil
	})
	if counts[""] <= 0 {
		delete(counts, "")
	}
	return counts, err
}

const (
	resealEvery = 10 * time.Minute
	resealBatch = 50
)

// reseal seals the configs that an older key has sealed anew, with the primary one. No version changes, so nothing is
// overtaken by it; a config that is changed meanwhile was sealed with the primary key by that.
func (s *DeliveryService) reseal(ctx context.Context, chores *Chores) error {
	keys := s.settings.Keys
	if keys == nil {
		return nil
	}
	leased, err := s.lease(ctx, "keys", resealEvery)
	if err != nil || !leased {
		return err
	}
	within, cancel := context.WithTimeout(ctx, choreLease)
	defer cancel()
	for after := int64(0); within.Err() == nil; {
		var rows []*sqlstore.Destination
		err := s.store.Read(within, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			rows, err = tx.SealedByOthers(ctx, after, seal.Prefix(keys.IDs()[0]), resealBatch)
			return err
		})
		if err != nil {
			return err
		}
		for _, row := range rows {
			after = row.No
			if err := s.resealOne(within, row, chores); err != nil {
				s.settings.Logger.WarnContext(ctx, "delivery: a config could not be sealed anew; it is tried again later",
					"organization", row.Organization, "destination", row.ID, "error", err)
			}
		}
		if len(rows) < resealBatch {
			break
		}
	}
	return s.finishChore(ctx, "keys")
}

func (s *DeliveryService) resealOne(ctx context.Context, row *sqlstore.Destination, chores *Chores) error {
	sealed, changed, err := s.settings.Keys.Rewrap(ctx, row.Sealed, engine.Binding(row))
	if err != nil || !changed {
		return err
	}
	done := false
	err = s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		done, err = tx.Reseal(ctx, row, sealed)
		return err
	}, sqlstore.Again)
	if done {
		chores.ConfigsResealed++
	}
	return err
}
