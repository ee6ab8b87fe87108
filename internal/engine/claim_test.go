package engine_test

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/payload"
)

type fakeConfig struct{}

func (fakeConfig) DestinationType() string { return "fake" }

func (fakeConfig) Validate() error { return nil }

// A claim whose transaction the database has run again claims each item once.
func TestClaimThatRunsAgain(t *testing.T) {
	t.Parallel()
	db := migrated(t, "postgres", dbtest.Postgres(t))
	var calls atomic.Int64
	svc, err := delivery.New(db, delivery.WithLogger(slog.New(slog.DiscardHandler)), delivery.WithHandler("fake",
		handler.Func(func(context.Context, *handler.Request, struct{}) (*handler.Result, error) {
			calls.Add(1)
			return nil, nil
		})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = svc.Close() })
	acme := svc.Org("acme")
	if _, err := acme.Destinations().Create(t.Context(), destination.Spec{
		Label: "fake", Config: fakeConfig{}, Default: true,
	}); err != nil {
		t.Fatal(err)
	}
	const items = 3
	if _, err := acme.DeliverMany(t.Context(), slices.Repeat([]delivery.Request{{Payload: payload.JSON(1)}}, items)); err != nil {
		t.Fatal(err)
	}
	// A sequence keeps its number through the rollback.
	_, err = db.ExecContext(t.Context(), `
		create sequence claims;
		create function conflict() returns trigger language plpgsql as $$ begin
			if nextval('claims') = 1 then raise exception 'conflict' using errcode = '40001'; end if;
			return new;
		end $$;
		create trigger conflict before insert on delivery_leases for each row execute function conflict()`)
	if err != nil {
		t.Fatal(err)
	}
	pass, err := svc.ProcessDue(t.Context())
	if err != nil || pass.Attempts != items || pass.Delivered != items || calls.Load() != items {
		t.Errorf("pass is %+v with %d calls: %v", pass, calls.Load(), err)
	}
	var leases int
	err = db.QueryRowContext(t.Context(), `select last_value from claims`).Scan(&leases)
	if err != nil || leases != 2 {
		t.Errorf("%d leases were granted, want one that failed and one: %v", leases, err)
	}
}
