package delivery

import (
	"context"

	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// KeyWrapper seals and opens the data keys that seal the credentials of destinations. It is a
// [LocalKey], or the host's key management service. It may be called by many goroutines at once.
type KeyWrapper interface {
	ID() string
	Wrap(ctx context.Context, dek, associatedData []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, associatedData []byte) ([]byte, error)
}

// LocalKey is a KeyWrapper with a key of 32 random bytes, in base64 or hex. The id is stored with
// everything that the key seals, and must never be given to another key. A bad key is an error of
// [New].
func LocalKey(id, key string) KeyWrapper {
	k, err := seal.Local(id, key)
	if err != nil {
		return badKey{id, err}
	}
	return k
}

// badKey keeps the error of LocalKey for New.
type badKey struct {
	id  string
	err error
}

func (k badKey) ID() string                                             { return k.id }
func (k badKey) Wrap(context.Context, []byte, []byte) ([]byte, error)   { return nil, k.err }
func (k badKey) Unwrap(context.Context, []byte, []byte) ([]byte, error) { return nil, k.err }

// KeysInUse counts the configs that each of the service's keys has sealed. Configs that an unknown
// key has sealed are under "". A key can be left out of [WithKeys] once its count is 0 and no
// process has it as the primary one.
func (s *DeliveryService) KeysInUse(ctx context.Context) (map[string]int, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	counts := map[string]int{}
	err := s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		unknown, err := configs.CountSealed(ctx, tx, nil)
		if err != nil || s.settings.Keys == nil {
			counts[""] = unknown
			return err
		}
		for _, id := range s.settings.Keys.IDs() {
			if counts[id], err = configs.CountSealed(ctx, tx, seal.Prefix(id)); err != nil {
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
