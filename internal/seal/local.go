package seal

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/tink"
)

const localKeySize = 32

type local struct {
	id   string
	aead tink.AEAD
}

// Local returns a key that the host holds itself: 32 random bytes, written as
// hex or as base64 of either alphabet, padded or not. Space around it is
// ignored. No error contains a part of the key, or the id: a caller who swaps
// the two would find the key in it.
//
// The key wraps with AES-256-GCM and random nonces, which is sound for 2^32
// wraps (NIST SP 800-38D, section 8.3). Each create or change of a destination
// is one wrap.
func Local(id, key string) (KeyWrapper, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	raw, err := decodeKey(strings.TrimSpace(key))
	if err != nil {
		return nil, fmt.Errorf("seal: the key %w; \"openssl rand -base64 32\" makes one", err)
	}
	aead, err := subtle.NewAESGCM(raw)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return &local{id: id, aead: aead}, nil
}

// decodeKey treats 64 hexadecimal digits as hex, although they are also base64
// of 48 bytes. It uses no error of the decoders, because these quote their
// input.
func decodeKey(s string) ([]byte, error) {
	if s == "" {
		return nil, fmt.Errorf("is empty, want %d bytes as base64 or hex", localKeySize)
	}
	fromHex, hexErr := hex.DecodeString(s)
	if hexErr == nil && len(fromHex) == localKeySize {
		return fromHex, nil
	}
	for _, encoding := range [...]*base64.Encoding{
		base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding,
	} {
		raw, err := encoding.Strict().DecodeString(s)
		switch {
		case err != nil:
			continue
		case len(raw) == localKeySize:
			return raw, nil
		case hexErr != nil:
			return nil, fmt.Errorf("is base64 of %d bytes, want %d", len(raw), localKeySize)
		}
	}
	if hexErr == nil {
		return nil, fmt.Errorf("is hex of %d bytes, want %d", len(fromHex), localKeySize)
	}
	return nil, fmt.Errorf(
		"is neither base64 nor hex (%d characters), want %d bytes in one of them", len(s), localKeySize,
	)
}

func (l *local) ID() string { return l.id }

func (l *local) Wrap(_ context.Context, dek, associatedData []byte) ([]byte, error) {
	return l.aead.Encrypt(dek, associatedData)
}

func (l *local) Unwrap(_ context.Context, wrapped, associatedData []byte) ([]byte, error) {
	dek, err := l.aead.Decrypt(wrapped, associatedData)
	if err != nil {
		return nil, ErrOpen
	}
	return dek, nil
}

// Format shows the id for any verb, so that no dump of a host's settings prints
// the key.
func (l *local) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "seal.Local("+l.id+")")
}
