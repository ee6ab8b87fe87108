package gcs_test

import (
	"crypto/rand"
	"crypto/rsa"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/gcs"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	peer := func(edit func(t testing.TB, c *gcs.Config)) func(t testing.TB) handlertest.Peer {
		return func(t testing.TB) handlertest.Peer {
			t.Helper()
			c := config("no-such-bucket")
			edit(t, &c)
			return handlertest.Peer{Config: c, Secrets: []string{c.Credentials.ServiceAccount.Reveal()}}
		}
	}
	handlertest.Run(t, handlertest.Harness{
		New: func() handler.Handler { return gcs.New() },
		Peer: func(t testing.TB) handlertest.Peer {
			t.Helper()
			c := config(newBucket(t))
			c.Naming = storage.Naming{Name: "{organization}/{item}{ext}"}
			c.Attributes = storage.Attributes{Metadata: map[string]string{"team": "exports"}}
			return handlertest.Peer{
				Config:  c,
				Secrets: []string{c.Credentials.ServiceAccount.Reveal()},
				Received: func(req *handler.Request) [][]byte {
					var all [][]byte
					for _, ext := range []string{"", ".bin", ".json"} {
						if b := object(c.Bucket, "handlertest/"+req.ItemID+ext); b != nil {
							all = append(all, b)
						}
					}
					return all
				},
			}
		},
		Hanging: func(t testing.TB) handlertest.Peer {
			t.Helper()
			endpoint := uploads.Hanging(t)
			return peer(func(_ testing.TB, c *gcs.Config) { c.Endpoint = endpoint })(t)
		},
		Faults: []handlertest.Fault{
			{Name: "missing bucket", Category: handler.Configuration, StatusCode: 404, Peer: peer(func(testing.TB, *gcs.Config) {})},
			{Name: "deleted key", Category: handler.Authentication, StatusCode: 400, Peer: peer(func(t testing.TB, c *gcs.Config) {
				c.Bucket, c.Credentials.ServiceAccount = newBucket(t), destination.NewSecret(keyFile(other))
			})},
			{Name: "nobody there", Category: handler.Network, WillRetry: true, Peer: peer(func(t testing.TB, c *gcs.Config) {
				c.Endpoint = uploads.Refused(t)
			})},
		},
		Invalid: []handlertest.Invalid{
			{Name: "empty", Config: gcs.Config{}, Paths: []string{"bucket", "credentials.service_account"}},
			{Name: "unknown field", Config: destination.As("gcs", `{"bucket":"abc","acl":"public-read"}`), Paths: []string{"acl"}},
			{Name: "forbidden host", Config: func() gcs.Config { c := config("abc"); c.Endpoint = "https://169.254.169.254"; return c }(), Paths: []string{"endpoint"}},
			{Name: "credentials that are not lent", Config: gcs.Config{Bucket: "abc", Credentials: gcs.Credentials{Type: gcs.Default, Impersonate: email}},
				Paths: []string{"credentials.type", "credentials.impersonate"}},
			{Name: "another kind of key file", Config: gcs.Config{Bucket: "abc", Credentials: gcs.Credentials{
				ServiceAccount: destination.NewSecret(`{"type":"external_account","credential_source":{"file":"/etc/passwd"}}`),
			}}, Paths: []string{"credentials.service_account"}},
			{
				Name: "everything at once",
				Config: gcs.Config{
					Bucket: "A/b", Endpoint: "http://example.com/path", StorageClass: "cold", KMSKey: "key", ChunkSize: 1,
					Credentials: gcs.Credentials{Type: "other", Impersonate: "me", Delegates: []string{"me"}},
					Naming:      storage.Naming{Name: "../x", IfExists: "maybe"},
					Attributes:  storage.Attributes{ContentType: "text", Metadata: map[string]string{"a b": "x"}, Tags: map[string]string{"a": "b"}},
					Retention:   gcs.Retention{Mode: "strict", Days: -1, Hold: "tight"},
				},
				Paths: []string{"bucket", "endpoint", "storage_class", "kms_key", "chunk_size", "credentials.type", "credentials.impersonate",
					"credentials.delegates", "name", "if_exists", "content_type", "metadata.a b", "tags", "retention.mode", "retention.days", "retention.hold"},
			},
		},
	})
}
