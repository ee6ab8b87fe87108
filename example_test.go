package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// siem is the config of a destination type that the examples make up; webhook.Config is a real one.
type siem struct {
	Index string `json:"index"`
}

func (siem) DestinationType() string { return "siem" }

// example runs f with a service on an SQLite database of its own.
func example(h handler.Handler, f func(ctx context.Context, db *sql.DB, svc *delivery.DeliveryService) error) {
	err := func() (err error) {
		dir, err := os.MkdirTemp("", "delivery-example-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(filepath.Join(dir, "host.db"))+
			"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		svc, err := delivery.New(db, delivery.WithHandler("siem", h))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, svc.Close()) }()
		if err := svc.Migrate(context.Background()); err != nil {
			return err
		}
		return f(context.Background(), db, svc)
	}()
	if err != nil {
		fmt.Println(err)
	}
}

// An audit service commits an event and its delivery in one transaction: a rollback takes back
// both, and after a commit neither can be lost.
func ExampleOrg_DeliverTx() {
	index := handler.Func(func(ctx context.Context, req *handler.Request, config siem) (*handler.Result, error) {
		body, err := req.Payload.ReadAll(ctx, 1<<20)
		if err != nil {
			return nil, err
		}
		fmt.Printf("%s gets %s %s\n", config.Index, req.Topic, body)
		return nil, nil
	})
	example(index, func(ctx context.Context, db *sql.DB, svc *delivery.DeliveryService) error {
		acme := svc.Org("acme")
		_, err := acme.Destinations().Create(ctx, destination.Spec{Label: "SIEM", Default: true, Config: siem{Index: "audit"}})
		if err != nil {
			return err
		}
		if _, err := db.ExecContext(ctx, `create table audit (id integer primary key, action text)`); err != nil {
			return err
		}
		for _, action := range []string{"login", "logout"} {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `insert into audit (action) values ($1)`, action); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			_, err = acme.DeliverTx(ctx, tx, delivery.Request{
				Topic: "audit." + action, Payload: payload.JSON(map[string]string{"action": action}),
			})
			if err != nil {
				return errors.Join(err, tx.Rollback())
			}
			if action == "logout" {
				err = tx.Rollback() // something else of the host's failed
			} else {
				err = tx.Commit()
			}
			if err != nil {
				return err
			}
		}
		pass, err := svc.ProcessDue(ctx)
		fmt.Println("attempts:", pass.Attempts)
		return err
	})
	// Output:
	// audit gets audit.login {"action":"login"}
	// attempts: 1
}

// A host with a scheduler of its own calls ProcessDue from it. A failed attempt is no error: it is
// counted, recorded and tried again when it is due.
func ExampleDeliveryService_ProcessDue() {
	away := handler.Func(func(context.Context, *handler.Request, siem) (*handler.Result, error) {
		return nil, handler.Fail(handler.Network, errors.New("the SIEM is away"))
	})
	example(away, func(ctx context.Context, _ *sql.DB, svc *delivery.DeliveryService) error {
		acme := svc.Org("acme")
		d, err := acme.Destinations().Create(ctx, destination.Spec{Label: "SIEM", Config: siem{Index: "exports"}})
		if err != nil {
			return err
		}
		receipt, err := acme.Deliver(ctx, delivery.Request{
			Payload: payload.Bytes("export.csv", []byte("a,b\n1,2\n")), Destinations: []string{d.ID},
			Retry: retry.Policy{Retries: 1, First: 1, Max: 1}, // one retry, at once
		})
		if err != nil {
			return err
		}
		for {
			pass, err := svc.ProcessDue(ctx)
			if err != nil {
				return err
			}
			if pass.Next.IsZero() { // nothing waits for a time any more
				break
			}
		}
		status, err := acme.Status(ctx, receipt.ID)
		if err != nil {
			return err
		}
		item := status.Items[0]
		fmt.Printf("%s: %s after %d attempts, %s\n", status.State, item.State, len(item.Attempts), item.Reason)
		fmt.Println(item.Attempts[1].Error)
		return nil
	})
	// Output:
	// failed: dead after 2 attempts, retries exhausted
	// the SIEM is away
}

// Once a destination has been mended, what died of it is retried: first as a dry run.
func ExampleDeadLetters_Retry() {
	away := true
	index := handler.Func(func(context.Context, *handler.Request, siem) (*handler.Result, error) {
		if away {
			return nil, handler.Fail(handler.Authentication, errors.New("the key has expired"))
		}
		return nil, nil
	})
	example(index, func(ctx context.Context, _ *sql.DB, svc *delivery.DeliveryService) error {
		acme := svc.Org("acme")
		d, err := acme.Destinations().Create(ctx, destination.Spec{Label: "SIEM", Default: true, Config: siem{Index: "audit"}})
		if err != nil {
			return err
		}
		for _, action := range []string{"login", "logout"} {
			if _, err := acme.Deliver(ctx, delivery.Request{Topic: "audit." + action, Payload: payload.JSON(action)}); err != nil {
				return err
			}
		}
		if _, err := svc.ProcessDue(ctx); err != nil {
			return err
		}
		page, err := acme.DeadLetters().List(ctx, delivery.DeadFilter{Destination: d.ID}, "")
		if err != nil {
			return err
		}
		for _, letter := range page.Items {
			fmt.Printf("%s: %s, %s\n", letter.Topic, letter.Reason, letter.Attempts[0].Error)
		}
		away = false
		filter := delivery.DeadFilter{Destination: d.ID, DryRun: true}
		would, err := acme.DeadLetters().Retry(ctx, filter)
		if err != nil {
			return err
		}
		filter.DryRun = false
		did, err := acme.DeadLetters().Retry(ctx, filter)
		if err != nil {
			return err
		}
		pass, err := svc.ProcessDue(ctx)
		fmt.Println(would.Items, "would be retried,", did.Items, "were,", pass.Delivered, "are delivered")
		return err
	})
	// Output:
	// audit.logout: permanent failure, the key has expired
	// audit.login: permanent failure, the key has expired
	// 2 would be retried, 2 were, 2 are delivered
}
