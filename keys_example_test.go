package delivery_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"fmt"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/testkit"
)

// vaultKey is a key that never leaves a key management service: a host calls Encrypt and Decrypt of
// its SDK in place of the cipher here, and passes the associated data as the encryption context.
type vaultKey struct{ aead cipher.AEAD }

func (vaultKey) ID() string { return "kms-2026" }

func (k vaultKey) Wrap(_ context.Context, dek, associatedData []byte) ([]byte, error) {
	nonce := make([]byte, k.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails: it ends the process instead
	return k.aead.Seal(nonce, nonce, dek, associatedData), nil
}

func (k vaultKey) Unwrap(_ context.Context, wrapped, associatedData []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(wrapped) < n {
		return nil, fmt.Errorf("%d bytes are no wrapped key", len(wrapped))
	}
	return k.aead.Open(nil, wrapped[:n], wrapped[n:], associatedData)
}

// A host seals credentials with a key management service.
func ExampleKeyWrapper() {
	block, _ := aes.NewCipher(make([]byte, 32))
	aead, _ := cipher.NewGCM(block)
	example(&testkit.Fake{}, func(ctx context.Context, db *sql.DB, _ *delivery.DeliveryService) error {
		svc, err := delivery.New(db, delivery.WithHandler("fake", &testkit.Fake{}), delivery.WithKeys(vaultKey{aead}))
		if err != nil {
			return err
		}
		defer svc.Close()
		d, err := svc.Org("acme").Destinations().Create(ctx, destination.Spec{
			Label: "SIEM", Config: testkit.Script{Name: "n", Token: destination.NewSecret("s3cret")},
		})
		if err != nil {
			return err
		}
		inUse, err := svc.KeysInUse(ctx)
		fmt.Println(string(d.Config), inUse)
		return err
	})
	// Output: {"name":"n","token":"[redacted]"} map[kms-2026:1]
}
