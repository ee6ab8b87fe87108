package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/webhook"
)

type event struct {
	ID     string `json:"id"`
	Actor  string `json:"actor"`
	Action string `json:"action"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(urls []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	db, err := sqlx.ConnectContext(ctx, "postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	create := `create table if not exists audit (id text primary key, actor text, action text)`
	if _, err := db.ExecContext(ctx, create); err != nil {
		return err
	}
	svc, err := newService(db, os.Getenv("DELIVERY_KEY"))
	if err != nil {
		return err
	}
	defer func() { _ = svc.Close() }()
	if err := svc.Migrate(ctx); err != nil { // any number of processes may, at every start
		return err
	}
	for _, url := range urls { // in a real service, what an organization enters in its settings
		spec := destination.Spec{Label: url, Default: true, Config: webhook.Config{URL: url}}
		if _, err := svc.Org("acme").Destinations().Create(ctx, spec); err != nil {
			return err
		}
	}
	start := event{ID: time.Now().UTC().Format(time.RFC3339Nano), Actor: "host", Action: "start"}
	if err := record(ctx, db, svc, "acme", start); err != nil {
		return err
	}
	return svc.Run(ctx) // attempts what is due, until ctx ends and what is in flight is done: then nil
}
