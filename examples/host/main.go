// Command host is an audit service that embeds the library:
//
//	export DATABASE_URL=postgres://... DELIVERY_KEY=$(openssl rand -base64 32)
//	go run ./examples/host https://siem.example.com/hook
//
// The README shows the part below; the rest of the program is in start.go.
package main

import (
	"context"
	"errors"

	"github.com/jmoiron/sqlx"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

func newService(db *sqlx.DB, key string) (*delivery.DeliveryService, error) {
	return delivery.New(db, // the host's own pool, *sqlx.DB or *sql.DB; never closed by the library
		delivery.WithHandler("webhook", webhook.New()),
		delivery.WithKeys(delivery.LocalKey("2026-11", key)), // seals credentials at rest
	)
}

// record commits an audit event and its delivery together, or neither of them.
func record(ctx context.Context, db *sqlx.DB, svc *delivery.DeliveryService, org string, e event) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do
	insert := `insert into audit (id, actor, action) values (:id, :actor, :action)`
	if _, err = tx.NamedExecContext(ctx, insert, e); err != nil {
		return err
	}
	_, err = svc.Org(org).DeliverTx(ctx, tx, delivery.Request{ // to the organization's default destinations
		Topic: "audit." + e.Action, Payload: payload.JSON(e), IdempotencyKey: e.ID,
	})
	if err != nil && !errors.Is(err, delivery.ErrNoDestinations) { // who has none still gets the audit row
		return err
	}
	if err = tx.Commit(); err == nil {
		svc.Wake() // attempt it now rather than at the next poll
	}
	return err
}
