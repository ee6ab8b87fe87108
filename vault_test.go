package delivery_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// locked is the config of destinations that do all that a handler may offer.
type locked struct {
	Name    string               `json:"name"`
	Token   destination.Secret   `json:"token"`
	Secrets []destination.Secret `json:"secrets,omitempty"`
}

func (locked) DestinationType() string { return "vault" }

func (c locked) Validate() error { return destination.Require("name", c.Name) }

// vault is a fake with connection tests, signing secrets, warnings and a schema.
type vault struct {
	handler.Parser[locked]
	fake
	test  func(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error)
	tests []handler.TestRequest
}

func (v *vault) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	v.mu.Lock()
	v.tests = append(v.tests, *req)
	test := v.test
	v.mu.Unlock()
	if test == nil {
		return &destination.TestReport{OK: true, Steps: []destination.TestStep{{Name: "connect", OK: true}}}, nil
	}
	return test(ctx, req)
}

func (v *vault) tested() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.tests)
}

func (v *vault) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

func (*vault) Complete(config, _ any) (any, error) { return config, nil }

func (*vault) SigningSecrets(config any) []destination.Secret { return config.(locked).Secrets }

func (*vault) Rotate(config any, r handler.Rotation) (any, error) {
	c := config.(locked)
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

func (*vault) Warn(config any) []*destination.FieldError {
	if config.(locked).Name == "suspicious" {
		return []*destination.FieldError{{Path: "name", Code: "suspicious", Message: "is it meant?"}}
	}
	return nil
}

func (*vault) Describe() destination.TypeInfo {
	return destination.TypeInfo{Title: "Vault", Schema: []byte(`{"type":"object","properties":{"name":{"type":"string"}}}`)}
}

// openVault returns a service with a vault, and a destination of acme's there.
func openVault(t *testing.T, db *sql.DB, v *vault, opts ...delivery.Option) (*delivery.DeliveryService, *destination.Destination) {
	t.Helper()
	svc := service(t, db, &fake{}, append([]delivery.Option{delivery.WithHandler("vault", v)}, opts...)...)
	return svc, createVault(t, svc.Org("acme"), destination.Spec{Default: true})
}

func createVault(t *testing.T, org *delivery.Org, spec destination.Spec) *destination.Destination {
	t.Helper()
	if spec.Config == nil {
		spec.Config = locked{Name: "n", Token: destination.NewSecret("s3cret"), Secrets: []destination.Secret{destination.NewSecret("first")}}
	}
	return create(t, org, spec)
}
