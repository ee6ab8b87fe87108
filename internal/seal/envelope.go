package seal

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
)

const (
	formatVersion = 1
	maxIDLength   = 64
	maxWrapped    = 8 << 10 // the ciphertexts of AWS KMS, the longest known, have up to 6144 bytes
	overhead      = subtle.AESGCMIVSize + subtle.AESGCMTagSize
)

const idCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

// checkID does not quote the id, which may be a key given in its place.
func checkID(id string) error {
	if id == "" || len(id) > maxIDLength || strings.Trim(id, idCharacters) != "" {
		return fmt.Errorf(
			"seal: the key id must be 1 to %d characters of A-Z, a-z, 0-9, dot, underscore and hyphen; it has %d",
			maxIDLength, len(id),
		)
	}
	return nil
}

type envelope struct {
	keyID      string
	wrapped    []byte
	ciphertext []byte // nonce, ciphertext, tag
}

func (e envelope) marshal() []byte {
	b := make([]byte, 0, 1+1+len(e.keyID)+2+len(e.wrapped)+len(e.ciphertext))
	b = append(b, formatVersion, byte(len(e.keyID)))
	b = append(b, e.keyID...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.wrapped)))
	b = append(b, e.wrapped...)
	return append(b, e.ciphertext...)
}

// parse returns slices of b. It accepts exactly the values that marshal returns, byte by byte.
func parse(b []byte) (envelope, error) {
	malformed := func(format string, args ...any) (envelope, error) {
		return envelope{}, fmt.Errorf("%w (%s)", ErrOpen, fmt.Sprintf(format, args...))
	}
	if len(b) < 2 {
		return malformed("a sealed value is longer than %d bytes", len(b))
	}
	if b[0] != formatVersion {
		return malformed("its format version %d is unknown; it may come from a newer release", b[0])
	}
	var e envelope
	n, b := int(b[1]), b[2:]
	if len(b) < n+2 {
		return malformed("it ends within the key id")
	}
	e.keyID, b = string(b[:n]), b[n:]
	if checkID(e.keyID) != nil {
		return malformed("its key id is malformed")
	}
	n, b = int(binary.BigEndian.Uint16(b)), b[2:]
	if n == 0 || n > maxWrapped {
		return malformed("its wrapped data key has %d bytes", n)
	}
	if len(b) < n+overhead {
		return malformed("it ends too early")
	}
	e.wrapped, e.ciphertext = b[:n:n], b[n:]
	if len(e.ciphertext) > maxPlaintext+overhead {
		return malformed("it is longer than a sealed value can be")
	}
	return e, nil
}

// Prefix returns the bytes at the start of every value that a key has sealed. No other value begins
// with them.
func Prefix(keyID string) []byte { return append([]byte{formatVersion, byte(len(keyID))}, keyID...) }
