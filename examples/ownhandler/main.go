// Command ownhandler delivers to a type of destination that the library does not know: tables of
// the host's database.
//
//	go run ./examples/ownhandler
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"

	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// Inbox is the config of a destination: what a tenant enters, and what is stored as JSON.
type Inbox struct {
	Table string `json:"table"`
}

// DestinationType names the handler.
func (Inbox) DestinationType() string { return "inbox" }

var tableName = regexp.MustCompile(`^inbox_[a-z]+$`)

// Validate is called when a destination is saved, and before it is used.
func (i Inbox) Validate() error {
	return errors.Join(destination.Require("table", i.Table), destination.Match("table", i.Table, tableName))
}

// deliverTo returns the handler. Delivery is at least once, so the message id, which is the same in
// all attempts, is the key that makes a repetition harmless.
func deliverTo(db *sql.DB) handler.Handler {
	return handler.Func(func(ctx context.Context, req *handler.Request, inbox Inbox) (*handler.Result, error) {
		body, err := req.Payload.ReadAll(ctx, 1<<20)
		if err != nil {
			return nil, err // above 1 MiB it is permanent, else it is tried again
		}
		insert := `insert into ` + inbox.Table + //nolint:gosec // Validate has checked it
			` (id, topic, body) values ($1, $2, $3) on conflict do nothing`
		_, err = db.ExecContext(ctx, insert, req.MessageID, req.Topic, string(body))
		return &handler.Result{Reference: handler.Reference{ID: inbox.Table + "/" + req.MessageID}}, err
	})
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "delivery-ownhandler-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	db, err := sql.Open(
		"sqlite",
		"file:"+filepath.ToSlash(
			filepath.Join(dir, "host.db"),
		)+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)",
	)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(
		ctx,
		`create table inbox_sales (id text primary key, topic text, body text)`,
	); err != nil {
		return err
	}
	svc, err := delivery.New(db, delivery.WithHandler("inbox", deliverTo(db)))
	if err != nil {
		return err
	}
	defer func() { _ = svc.Close() }()
	if err := svc.Migrate(ctx); err != nil {
		return err
	}

	acme := svc.Org("acme")
	sales, err := acme.Destinations().Create(ctx, destination.Spec{Label: "Sales", Config: Inbox{Table: "inbox_sales"}})
	if err != nil {
		return err
	}
	receipt, err := acme.Deliver(ctx, delivery.Request{
		Topic: "order.placed", Payload: payload.JSON(map[string]int{"order": 4711}), Destinations: []string{sales.ID},
	})
	if err != nil {
		return err
	}
	pass, err := svc.ProcessDue(ctx)
	if err != nil {
		return err
	}
	status, err := acme.Status(ctx, receipt.ID)
	if err != nil {
		return err
	}
	var body string
	if err := db.QueryRowContext(ctx, `select body from inbox_sales`).Scan(&body); err != nil {
		return err
	}
	fmt.Printf("%d attempt, %s: %s\nreference: %s\n", pass.Attempts, status.State, body, status.Items[0].Reference.ID)
	_, err = acme.Destinations().Create(
		ctx,
		destination.Spec{Label: "Bad", Config: Inbox{Table: "users; drop table users"}},
	)
	fmt.Println("refused:", err)
	return nil
}
