package gcs_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/gcs"
	"github.com/deliverykit/delivery/payload"
)

func keyFile(t *testing.T, changes map[string]string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := map[string]string{
		"type": "service_account", "client_email": "exports@acme.iam.gserviceaccount.com", "token_uri": "http://127.0.0.1:1/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
	for name, v := range changes {
		file[name] = v
	}
	b, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A key file comes from a tenant: no other kind of credentials, and no address that is not open.
func TestKeyFiles(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{
		"no JSON":         "{",
		"another kind":    `{"type":"external_account","credential_source":{"executable":{"command":"id"}}}`,
		"no private key":  keyFile(t, map[string]string{"private_key": "x"}),
		"no e-mail":       keyFile(t, map[string]string{"client_email": ""}),
		"plain http":      keyFile(t, map[string]string{"token_uri": "http://example.com/token"}),
		"metadata":        keyFile(t, map[string]string{"token_uri": "https://169.254.169.254/token"}),
		"another service": keyFile(t, map[string]string{"universe_domain": "example.com"}),
	} {
		h := gcs.New()
		handlertest.Open(t, h)
		raw, err := destination.Raw(gcs.Config{Bucket: "exports", Credentials: gcs.Credentials{ServiceAccount: destination.NewSecret(file)}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.ParseConfig(raw)
		if err == nil || !strings.Contains(err.Error(), "credentials.service_account") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the key is in the error: %v", name, err)
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	err := gcs.New(nil, gcs.WithCredentials(nil), gcs.WithImpersonation(nil), gcs.WithTrustedEndpoint("http://example.com"), gcs.WithMemory(1),
		gcs.WithDefaultCredentials(), gcs.WithDefaultCredentials()).Open(handler.Env{})
	if err == nil || strings.Count(err.Error(), "\n") != 6 {
		t.Errorf("%v", err)
	}
	_, err = gcs.New().Deliver(context.Background(), &handler.Request{Config: gcs.Config{}})
	if e := handler.Classify(err); err == nil || e.Category != handler.Internal {
		t.Errorf("a handler that is not open: %v", err)
	}
}

func TestForeignHostsAreRefusedWhenDialled(t *testing.T) {
	t.Parallel()
	h := gcs.New()
	c := gcs.Config{Bucket: "exports", Credentials: gcs.Credentials{ServiceAccount: destination.NewSecret(keyFile(t, nil))}}
	req := handlertest.Request(t, h, c, payload.JSON("x"))
	c.Credentials.ServiceAccount = destination.NewSecret(keyFile(t, map[string]string{"token_uri": "https://10.0.0.1/token"})) // as if a name had changed its address since
	req.Config = c
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Configuration || e.WillRetry() {
		t.Errorf("%s: %v", e.Category, err)
	}
}

func ExampleConfig() {
	config := gcs.Config{
		Bucket:       "acme-exports",
		Credentials:  gcs.Credentials{Type: gcs.Default, Impersonate: "exports@acme.iam.gserviceaccount.com"},
		Naming:       storage.Naming{Name: "{year}/{month}/{topic}-{item}{ext}"},
		StorageClass: "NEARLINE",
		Retention:    gcs.Retention{Mode: "Locked", Days: 365},
	}
	fmt.Println(config.Validate())
	config.Bucket, config.ChunkSize = "acme/exports", 1
	fmt.Println(config.Validate())
	// Output:
	// <nil>
	// bucket: is not a bucket name: 3 to 222 lower-case letters, digits, hyphens, underscores and dots
	// chunk_size: is not a multiple of 262144 between that and 536870912 bytes
}
