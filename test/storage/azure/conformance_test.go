package azure_test

import (
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/azure"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	peer := func(edit func(t testing.TB, c *azure.Config)) func(t testing.TB) handlertest.Peer {
		return func(t testing.TB) handlertest.Peer {
			t.Helper()
			c := config("no-such-container")
			edit(t, &c)
			return handlertest.Peer{Config: c, Secrets: []string{c.Credentials.AccountKey.Reveal()}}
		}
	}
	handlertest.Run(t, handlertest.Harness{
		New: func() handler.Handler { return azure.New() },
		Peer: func(t testing.TB) handlertest.Peer {
			t.Helper()
			c := config(newContainer(t))
			c.Naming = storage.Naming{Name: "{organization}/{item}{ext}"}
			c.Attributes = storage.Attributes{Metadata: map[string]string{"team": "exports"}, Tags: map[string]string{"kind": "test"}}
			return handlertest.Peer{
				Config:  c,
				Secrets: []string{accountKey},
				Received: func(req *handler.Request) [][]byte {
					var all [][]byte
					for _, ext := range []string{"", ".bin", ".json"} {
						if b := object(t, c.Container, "handlertest/"+req.ItemID+ext); b != nil {
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
			return peer(func(_ testing.TB, c *azure.Config) { c.Endpoint = endpoint + "/" + account })(t)
		},
		Faults: []handlertest.Fault{
			{Name: "missing container", Category: handler.Configuration, StatusCode: 404, Peer: peer(func(testing.TB, *azure.Config) {})},
			{Name: "wrong key", Category: handler.Authentication, StatusCode: 403, Peer: peer(func(t testing.TB, c *azure.Config) {
				c.Container, c.Credentials.AccountKey = newContainer(t), destination.NewSecret("YW5vdGhlci9jYW5hcnkrNDcxMg==")
			})},
			{Name: "expired signature", Category: handler.Authentication, StatusCode: 403, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				c := config(newContainer(t))
				sas := signature(t, c.Container, "racwdl", -1)
				c.Credentials = azure.Credentials{Type: azure.SAS, SAS: destination.NewSecret(sas)}
				return handlertest.Peer{Config: c, Secrets: []string{sas, sigOf(t, sas)}}
			}},
			{Name: "signature for reading", Category: handler.Authentication, StatusCode: 403, Peer: func(t testing.TB) handlertest.Peer {
				t.Helper()
				c := config(newContainer(t))
				sas := signature(t, c.Container, "rl", 1)
				c.Credentials = azure.Credentials{Type: azure.SAS, SAS: destination.NewSecret(sas)}
				return handlertest.Peer{Config: c, Secrets: []string{sas, sigOf(t, sas)}}
			}},
			{Name: "nobody there", Category: handler.Network, WillRetry: true, Peer: peer(func(t testing.TB, c *azure.Config) {
				c.Endpoint = uploads.Refused(t) + "/" + account
			})},
		},
		Invalid: []handlertest.Invalid{
			{Name: "empty", Config: azure.Config{}, Paths: []string{"account", "container", "credentials.type"}},
			{Name: "unknown field", Config: destination.As("azure", `{"account":"abc","acl":"public-read"}`), Paths: []string{"acl"}},
			{Name: "forbidden host", Config: func() azure.Config { c := config("abc"); c.Endpoint = "https://169.254.169.254"; return c }(), Paths: []string{"endpoint"}},
			{Name: "an identity that is not lent", Config: azure.Config{Account: "abc", Container: "abc", Credentials: azure.Credentials{Type: azure.ManagedIdentity}}, Paths: []string{"credentials.type"}},
			{Name: "missing parts", Config: azure.Config{Account: "abc", Container: "abc", Credentials: azure.Credentials{Type: azure.ClientSecret}},
				Paths: []string{"credentials.tenant_id", "credentials.client_id", "credentials.client_secret"}},
			{
				Name: "everything at once",
				Config: azure.Config{
					Account: "A_b", Container: "a--b", Endpoint: "http://example.com?x", Cloud: "private", Tier: "Premium", EncryptionScope: "a b",
					BlockSize: 1, Parallel: 100,
					Credentials: azure.Credentials{
						Type: azure.ClientCertificate, TenantID: "a b", ClientID: "me", Certificate: destination.NewSecret("no certificate"),
						AccountKey: destination.NewSecret("no base64"), SAS: destination.NewSecret("no signature"), ClientSecret: destination.NewSecret("x"),
					},
					Naming:     storage.Naming{Name: "../x", IfExists: "maybe"},
					Attributes: storage.Attributes{ContentType: "text", Metadata: map[string]string{"1st": "x"}, Tags: map[string]string{"a": "<"}},
				},
				Paths: []string{"account", "container", "endpoint", "cloud", "tier", "encryption_scope", "block_size", "parallel",
					"credentials.tenant_id", "credentials.client_id", "credentials.certificate", "credentials.account_key",
					"credentials.sas", "credentials.client_secret", "name", "if_exists", "content_type", "metadata.1st", "tags.a"},
			},
		},
	})
}
