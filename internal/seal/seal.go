package seal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
)

const (
	dataKeySize  = 32
	maxPlaintext = 1 << 20
)

// ErrOpen is matched by the errors of values that are not what [Keyring.Seal]
// gave for the same [AD]: damaged, altered, or moved from elsewhere. Trying
// again does not help.
var ErrOpen = errors.New(
	"seal: the value does not open: it was altered, or sealed for another organization, subject or version",
)

// UnknownKeyError says that a value was sealed with a key that the keyring
// does not have.
type UnknownKeyError struct {
	ID string
}

func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf(
		"seal: sealed with key %q, which was not given; give it as an older key until nothing is sealed with it any more",
		e.ID,
	)
}

// KeyWrapper encrypts data keys, which are 32 random bytes, with a key that it
// does not give away: [Local], or a host's KMS. It must be safe for concurrent
// use.
type KeyWrapper interface {
	// ID names the key, and is stored with all that it seals: 1 to 64
	// characters of A-Z, a-z, 0-9, dot, underscore and hyphen. It never
	// changes, nor does it ever name another key.
	ID() string

	// Wrap encrypts dek so that it can be unwrapped with the same associated
	// data only. The result has at most 8192 bytes. Neither argument is to be
	// changed or kept.
	Wrap(ctx context.Context, dek, associatedData []byte) ([]byte, error)

	// Unwrap reverses Wrap, and fails if either argument is another than it
	// was then. Its errors are passed on, so they hold no secret.
	Unwrap(ctx context.Context, wrapped, associatedData []byte) ([]byte, error)
}

// AD is what a sealed value belongs to. It is not stored with the value:
// whoever opens it has to know.
type AD struct {
	Organization string // required
	Subject      string // the destination's id; required
	Version      int64  // of the destination's configuration
}

func (a AD) check() error {
	if a.Organization == "" || a.Subject == "" {
		return errors.New("seal: organization and subject are required")
	}
	return nil
}

type purpose string

const (
	forDataKey purpose = "delivery/seal/1/data-key"
	forSecret  purpose = "delivery/seal/1/secret"
)

// bytes encodes injectively: every string comes after its length, and the only
// part without one is of fixed size and last.
func (a AD) bytes(p purpose, keyID string) []byte {
	b := make([]byte, 0, 5*8+len(p)+len(keyID)+len(a.Organization)+len(a.Subject))
	for _, s := range [...]string{string(p), keyID, a.Organization, a.Subject} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	return binary.BigEndian.AppendUint64(b, uint64(a.Version))
}

// Keyring seals with its first key and opens with all. It is safe for
// concurrent use and caches nothing: each Seal and each Open calls a
// [KeyWrapper] once.
type Keyring struct {
	primary string
	keys    map[string]KeyWrapper
}

// NewKeyring reports, joined, keys that are nil, ids that are not well-formed
// and ids that occur twice.
func NewKeyring(primary KeyWrapper, older ...KeyWrapper) (*Keyring, error) {
	var errs []error
	r := &Keyring{keys: make(map[string]KeyWrapper, 1+len(older))}
	add := func(what string, w KeyWrapper) (id string) {
		if w == nil {
			errs = append(errs, fmt.Errorf("seal: %s is nil", what))
			return ""
		}
		id = w.ID()
		if err := checkID(id); err != nil {
			errs = append(errs, fmt.Errorf("%w (%s)", err, what))
		} else if r.keys[id] != nil {
			errs = append(errs, fmt.Errorf("seal: key id %q is given twice (%s)", id, what))
		} else {
			r.keys[id] = w
		}
		return id
	}
	r.primary = add("the primary key", primary)
	for i, w := range older {
		add(fmt.Sprintf("older key %d", i+1), w)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}

// Seal encrypts plaintext, at most 1 MiB, for ad with a data key of its own,
// so that sealing the same twice gives two different values. It fails if the
// primary key does; that error is wrapped.
func (r *Keyring) Seal(ctx context.Context, plaintext []byte, ad AD) ([]byte, error) {
	if err := ad.check(); err != nil {
		return nil, err
	}
	if len(plaintext) > maxPlaintext {
		return nil, fmt.Errorf("seal: the secret has %d bytes, at most %d can be sealed", len(plaintext), maxPlaintext)
	}
	dek := make([]byte, dataKeySize)
	_, _ = rand.Read(dek) // never fails: it ends the process instead

	e := envelope{keyID: r.primary}
	var err error
	e.wrapped, err = r.keys[r.primary].Wrap(ctx, dek, ad.bytes(forDataKey, e.keyID))
	if err != nil {
		return nil, fmt.Errorf("seal: wrapping a data key with key %q: %w", e.keyID, err)
	}
	if n := len(e.wrapped); n == 0 || n > maxWrapped {
		return nil, fmt.Errorf("seal: key %q gave a wrapped data key of %d bytes, want 1 to %d", e.keyID, n, maxWrapped)
	}
	gcm, err := subtle.NewAESGCM(dek)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	e.ciphertext, err = gcm.Encrypt(plaintext, ad.bytes(forSecret, e.keyID))
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return e.marshal(), nil
}

// Open decrypts what Seal gave for the same ad.
//
// A value that is not that fails with [ErrOpen], one whose key is missing with
// an [*UnknownKeyError]. A failure of the key's wrapper is wrapped; a KMS that
// is away, and one that refuses an altered data key, cannot be told apart here.
func (r *Keyring) Open(ctx context.Context, sealed []byte, ad AD) ([]byte, error) {
	if err := ad.check(); err != nil {
		return nil, err
	}
	e, err := parse(sealed)
	if err != nil {
		return nil, err
	}
	wrapper := r.keys[e.keyID]
	if wrapper == nil {
		return nil, &UnknownKeyError{ID: e.keyID}
	}
	dek, err := wrapper.Unwrap(ctx, e.wrapped, ad.bytes(forDataKey, e.keyID))
	if err != nil {
		return nil, fmt.Errorf("seal: unwrapping a data key with key %q: %w", e.keyID, err)
	}
	if len(dek) != dataKeySize {
		return nil, fmt.Errorf("seal: key %q gave a data key of %d bytes, want %d", e.keyID, len(dek), dataKeySize)
	}
	gcm, err := subtle.NewAESGCM(dek)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	plaintext, err := gcm.Decrypt(e.ciphertext, ad.bytes(forSecret, e.keyID))
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

// KeyID tells which key a value was sealed with. It checks the form of the
// value only, and needs no key. A value that is malformed fails with
// [ErrOpen].
func KeyID(sealed []byte) (string, error) {
	e, err := parse(sealed)
	return e.keyID, err
}

// Rewrap seals a value of an older key anew with the primary one, for the same
// ad and with another data key. A value of the primary key is given back as it
// is, unopened. It fails as Open and Seal do.
func (r *Keyring) Rewrap(ctx context.Context, sealed []byte, ad AD) (rewrapped []byte, changed bool, err error) {
	id, err := KeyID(sealed)
	if err != nil {
		return nil, false, err
	}
	if id == r.primary {
		return sealed, false, nil
	}
	plaintext, err := r.Open(ctx, sealed, ad)
	if err != nil {
		return nil, false, err
	}
	rewrapped, err = r.Seal(ctx, plaintext, ad)
	return rewrapped, err == nil, err
}

// IDs lists the keys, the primary one first.
func (r *Keyring) IDs() []string {
	ids := []string{r.primary}
	for id := range r.keys {
		if id != r.primary {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids[1:])
	return ids
}
