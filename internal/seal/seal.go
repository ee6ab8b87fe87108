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

// ErrOpen is wrapped by the error for a value that [Keyring.Seal] did not return
// for the same [AD]: it was damaged, altered, or moved from elsewhere. Trying
// again does not help.
var ErrOpen = errors.New(
	"seal: the value does not open: it was altered, or sealed for another organization, subject or version",
)

// UnknownKeyError reports a value that was sealed with a key that the keyring
// does not have.
type UnknownKeyError struct {
	ID string
}

func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf(
		"seal: sealed with key %q, which was not given; give it as an older key as long as values are sealed with it",
		e.ID,
	)
}

// KeyWrapper encrypts data keys, which are 32 random bytes, with a key that it
// does not reveal: [Local], or a host's KMS. It must be safe for concurrent use.
type KeyWrapper interface {
	// ID names the key, and is stored with each value that it seals: 1 to 64
	// characters of A-Z, a-z, 0-9, dot, underscore and hyphen. It never
	// changes, and never names another key.
	ID() string

	// Wrap encrypts dek so that only the same associated data unwraps it. The
	// result has at most 8192 bytes. Wrap must not change or keep its
	// arguments.
	Wrap(ctx context.Context, dek, associatedData []byte) ([]byte, error)

	// Unwrap reverses Wrap, and fails if the wrapped key or the associated
	// data has changed. Its errors are passed on, so they must not contain a
	// secret.
	Unwrap(ctx context.Context, wrapped, associatedData []byte) ([]byte, error)
}

// AD names the owner of a sealed value. It is not stored with the value: the
// caller that opens the value has to know it.
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

// bytes encodes injectively: every string comes after its length, and the last
// part has a fixed size.
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

// NewKeyring returns a keyring. It reports nil keys, malformed ids and duplicate
// ids, joined.
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
			errs = append(errs, fmt.Errorf("seal: key id %q is a duplicate (%s)", id, what))
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

// Seal encrypts plaintext, at most 1 MiB, for ad. Each call uses a new data key,
// so sealing the same plaintext twice returns two different values. If the
// primary key fails, its error is wrapped.
func (r *Keyring) Seal(ctx context.Context, plaintext []byte, ad AD) ([]byte, error) {
	if err := ad.check(); err != nil {
		return nil, err
	}
	if len(plaintext) > maxPlaintext {
		return nil, fmt.Errorf("seal: the secret has %d bytes; at most %d can be sealed", len(plaintext), maxPlaintext)
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
		return nil, fmt.Errorf(
			"seal: key %q returned a wrapped data key of %d bytes; want 1 to %d", e.keyID, n, maxWrapped,
		)
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

// Open decrypts a value that Seal returned for the same ad.
//
// For any other value the error wraps [ErrOpen]; if the key is missing, it is an
// [*UnknownKeyError]. A failure of the key's wrapper is wrapped. Open cannot
// distinguish an unreachable KMS from one that refuses an altered data key.
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
		return nil, fmt.Errorf("seal: key %q returned a data key of %d bytes; want %d", e.keyID, len(dek), dataKeySize)
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

// KeyID returns the id of the key that sealed a value. It checks only the form
// of the value, and needs no key. The error for a malformed value wraps
// [ErrOpen].
func KeyID(sealed []byte) (string, error) {
	e, err := parse(sealed)
	return e.keyID, err
}

// Rewrap seals a value of an older key again, with the primary key and a new
// data key, for the same ad. It returns a value of the primary key unchanged and
// unopened. Its errors are those of Open and Seal.
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
