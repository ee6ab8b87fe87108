package testkit

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// Locked is the config of destinations that do all that a handler may offer.
type Locked struct {
	Name    string               `json:"name"`
	Token   destination.Secret   `json:"token"`
	Secrets []destination.Secret `json:"secrets,omitempty"`
}

// DestinationType returns "vault".
func (Locked) DestinationType() string { return "vault" }

// Validate requires a name.
func (c Locked) Validate() error { return destination.Require("name", c.Name) }

// Vault is a Fake with connection tests, signing secrets, warnings and a schema.
type Vault struct {
	handler.Parser[Locked]
	Fake
	OnTest func(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error)
	Tests  []handler.TestRequest
}

// Test implements handler.Tester.
func (v *Vault) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	v.Mu.Lock()
	v.Tests = append(v.Tests, *req)
	test := v.OnTest
	v.Mu.Unlock()
	if test == nil {
		return &destination.TestReport{OK: true, Steps: []destination.TestStep{{Name: "connect", OK: true}}}, nil
	}
	return test(ctx, req)
}

// Tested counts the tests.
func (v *Vault) Tested() int {
	v.Mu.Lock()
	defer v.Mu.Unlock()
	return len(v.Tests)
}

// Set changes the vault while it is used.
func (v *Vault) Set(change func()) {
	v.Mu.Lock()
	defer v.Mu.Unlock()
	change()
}

// Complete implements handler.Signer.
func (*Vault) Complete(config, _ any) (any, error) { return config, nil }

// SigningSecrets implements handler.Signer.
func (*Vault) SigningSecrets(config any) []destination.Secret { return config.(Locked).Secrets }

// Rotate implements handler.Signer.
func (*Vault) Rotate(config any, r handler.Rotation) (any, error) {
	c := config.(Locked)
	if r.Secret.Reveal() == "short" {
		return nil, destination.Invalid("secrets[0]", "is too short")
	}
	next := r.Secret
	if !next.IsSet() {
		next = destination.NewSecret(fmt.Sprintf("generated-%d", len(c.Secrets)))
	}
	kept := c.Secrets
	if !r.Until.After(r.Now) {
		kept = nil
	}
	c.Secrets = append([]destination.Secret{next}, kept...)
	return c, nil
}

// Warn implements handler.Warner.
func (*Vault) Warn(config any) []*destination.FieldError {
	if config.(Locked).Name == "suspicious" {
		return []*destination.FieldError{{Path: "name", Code: "suspicious", Message: "is it meant?"}}
	}
	return nil
}

// Describe implements handler.Describer.
func (*Vault) Describe() destination.TypeInfo {
	return destination.TypeInfo{Title: "Vault", Schema: []byte(`{"type":"object","properties":{"name":{"type":"string"}}}`)}
}

// OpenVault returns a service with a vault, and a destination of acme's there.
func OpenVault(t *testing.T, db *sql.DB, v *Vault, opts ...delivery.Option) (*delivery.DeliveryService, *destination.Destination) {
	t.Helper()
	svc := Service(t, db, &Fake{}, append([]delivery.Option{delivery.WithHandler("vault", v)}, opts...)...)
	return svc, CreateVault(t, svc.Org("acme"), destination.Spec{Default: true})
}

// CreateVault makes a destination of the type "vault".
func CreateVault(t *testing.T, org *delivery.Org, spec destination.Spec) *destination.Destination {
	t.Helper()
	if spec.Config == nil {
		spec.Config = Locked{Name: "n", Token: destination.NewSecret("s3cret"), Secrets: []destination.Secret{destination.NewSecret("first")}}
	}
	return Create(t, org, spec)
}
