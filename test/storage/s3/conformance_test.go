package s3_test

import (
	"testing"

	"github.com/deliverykit/delivery/test/internal/uploads"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/s3"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	peer := func(edit func(t testing.TB, c *s3.Config)) func(t testing.TB) handlertest.Peer {
		return func(t testing.TB) handlertest.Peer {
			t.Helper()
			c := config("no-such-bucket")
			edit(t, &c)
			return handlertest.Peer{Config: c, Secrets: []string{c.Credentials.SecretAccessKey.Reveal()}}
		}
	}
	handlertest.Run(t, handlertest.Harness{
		New: func() handler.Handler { return s3.New() },
		Peer: func(t testing.TB) handlertest.Peer {
			t.Helper()
			c := config(newBucket(t, false))
			c.Naming = storage.Naming{Name: "{organization}/{item}{ext}"}
			c.Attributes = storage.Attributes{Metadata: map[string]string{"team": "exports"}, Tags: map[string]string{"kind": "test"}}
			return handlertest.Peer{
				Config:  c,
				Secrets: []string{secretKey},
				Received: func(req *handler.Request) [][]byte {
					var all [][]byte
					for _, ext := range []string{"", ".bin", ".json"} {
						if b := object(t, c.Bucket, "handlertest/"+req.ItemID+ext); b != nil {
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
			return peer(func(_ testing.TB, c *s3.Config) { c.Endpoint = endpoint })(t)
		},
		Faults: []handlertest.Fault{
			{Name: "missing bucket", Category: handler.Configuration, StatusCode: 404, Peer: peer(func(testing.TB, *s3.Config) {})},
			{Name: "wrong secret", Category: handler.Authentication, StatusCode: 403, Peer: peer(func(t testing.TB, c *s3.Config) {
				c.Bucket, c.Credentials.SecretAccessKey = newBucket(t, false), destination.NewSecret("another/canary+4712")
			})},
			{Name: "unknown key", Category: handler.Authentication, StatusCode: 404, Peer: peer(func(t testing.TB, c *s3.Config) {
				c.Bucket, c.Credentials.AccessKeyID = newBucket(t, false), "AKIAOTHEROTHEROTHERO"
			})},
			{Name: "wrong region", Category: handler.Configuration, StatusCode: 400, Peer: peer(func(t testing.TB, c *s3.Config) {
				c.Bucket, c.Region = newBucket(t, false), "eu-central-1"
			})},
			{Name: "nobody there", Category: handler.Network, WillRetry: true, Peer: peer(func(t testing.TB, c *s3.Config) {
				c.Endpoint = uploads.Refused(t)
			})},
		},
		Invalid: []handlertest.Invalid{
			{Name: "empty", Config: s3.Config{}, Paths: []string{"bucket", "region", "credentials.access_key_id", "credentials.secret_access_key"}},
			{Name: "unknown field", Config: destination.As("s3", `{"bucket":"abc","acl":"public-read"}`), Paths: []string{"acl"}},
			{Name: "forbidden host", Config: func() s3.Config { c := config("abc"); c.Endpoint = "https://169.254.169.254"; return c }(), Paths: []string{"endpoint"}},
			{Name: "credentials that are not lent", Config: s3.Config{Bucket: "abc", Region: "eu-west-1", Credentials: s3.Credentials{Type: s3.Default}}, Paths: []string{"credentials.type"}},
			{
				Name: "everything at once",
				Config: s3.Config{
					Bucket: "a/b", Region: "Europe", Endpoint: "http://example.com/path", BucketOwner: "me", StorageClass: "cold", Checksum: "md5",
					PartSize: 1, Parallel: 100, AbandonAfter: destination.Hours(1),
					Credentials: s3.Credentials{AccessKeyID: "a b", SecretAccessKey: destination.NewSecret("x"), RoleARN: "role", ExternalID: "x y"},
					Naming:      storage.Naming{Name: "../x", IfExists: "maybe"},
					Attributes:  storage.Attributes{ContentType: "text", Metadata: map[string]string{"a b": "x"}, Tags: map[string]string{"a": "<"}},
					Encryption:  s3.Encryption{Type: "rot13", KMSKeyID: "a b"},
					ObjectLock:  s3.ObjectLock{Mode: "strict", Days: -1},
				},
				Paths: []string{"bucket", "region", "endpoint", "bucket_owner", "storage_class", "checksum", "part_size", "parallel", "abandon_after",
					"credentials.access_key_id", "credentials.role_arn", "credentials.external_id", "name", "if_exists", "content_type", "metadata.a b", "tags.a",
					"encryption.type", "encryption.kms_key_id", "object_lock.mode", "object_lock.days"},
			},
		},
	})
}
