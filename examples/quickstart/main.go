// Command quickstart delivers a report and a file to three webhooks on this machine, of which one
// works, one fails twice and one refuses every connection, and shows what became of each:
//
//	go run ./examples/quickstart
//
// It needs nothing but Go: its database is an embedded SQLite in a temporary folder. With
// DATABASE_URL set, as in postgres://user:password@host/database, it uses PostgreSQL, in a schema
// of its own that it drops at the end.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir, err := os.MkdirTemp("", "delivery-quickstart-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	db, closeDB, err := open(ctx, dir)
	if err != nil {
		return err
	}
	defer closeDB()

	// The key that seals credentials at rest. A host keeps its own where it keeps its other
	// secrets.
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails: it ends the process instead
	svc, err := delivery.New(db,
		delivery.WithHandler("webhook", webhook.New()),
		delivery.WithKeys(delivery.LocalKey("quickstart", hex.EncodeToString(key))),
		delivery.WithRetry(retry.Policy{Retries: 2, First: time.Second, Jitter: -1}),
		// Both payloads fail three times at the destination that refuses, which is as many as shall
		// be seen: the default breaker lets its items wait after 5 failures in a row.
		delivery.WithBreaker(retry.Breaker{Failures: 10}),
		// Tenants enter destinations, so the service connects to public addresses only: none of
		// them shall reach the host's own network through it. The receiver of this program is on
		// loopback, which has to be opened.
		delivery.WithNetwork(delivery.Network{Loopback: true}),
	)
	if err != nil {
		return err
	}
	defer func() { _ = svc.Close() }()
	if err := svc.Migrate(ctx); err != nil {
		return err
	}

	receiver, err := listen(ctx)
	if err != nil {
		return err
	}
	defer receiver.Close()
	acme := svc.Org("acme")
	for _, spec := range []destination.Spec{
		{Label: "steady", Default: true, Config: webhook.Config{URL: receiver.url + "/steady"}},
		{Label: "flaky", Default: true, Config: webhook.Config{URL: receiver.url + "/flaky"}},
		{Label: "refusing", Default: true, Config: webhook.Config{URL: receiver.refusing}},
	} {
		d, err := acme.Destinations().Create(ctx, spec)
		if err != nil {
			return err
		}
		secrets, err := acme.Destinations().SigningSecrets(ctx, d.ID) // generated, as the config gives none
		if err != nil {
			return err
		}
		receiver.secrets["/"+spec.Label] = secrets[0].Reveal() // as its owner copies it into the program that receives
	}
	go receiver.serve()
	fmt.Printf("receiver  %s: /steady answers 200, /flaky 500 twice and then 200\n", receiver.url)
	fmt.Printf("refusing  %s: nobody listens there\n", receiver.refusing)

	loop := make(chan error, 1)
	loopCtx, end := context.WithCancel(ctx)
	defer end()
	go func() { loop <- svc.Run(loopCtx) }()

	// Neither request names a destination, so each goes to the organization's defaults, which are
	// all three.
	file := filepath.Join(dir, "orders.csv")
	lines := strings.Repeat("4711,2026-07-01,widget,3,29.85\n", 100_000) // enough for the file to be streamed
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		return err
	}
	report := map[string]any{"quarter": "2026-Q3", "revenue": map[string]int{"EUR": 1_204_310, "USD": 980_775}}
	var deliveries []*delivery.Status
	for _, request := range []delivery.Request{
		{
			Topic: "report.finished", Payload: payload.JSON(report).As("report.json", ""),
			IdempotencyKey: "report-2026-Q3",
		},
		{Topic: "export.finished", Payload: payload.File(file)},
	} {
		receipt, err := acme.Deliver(ctx, request)
		if err != nil {
			return err
		}
		status, err := acme.Status(ctx, receipt.ID)
		if err != nil {
			return err
		}
		fmt.Printf("accepted  %s, %s, %d bytes for %d destinations\n",
			receipt.ID, status.Payload.Name, status.Payload.Size, len(receipt.Items))
		deliveries = append(deliveries, status)
	}
	fmt.Print("\nThe loop runs until all has ended, which takes some seconds.\n\n")
	for i, d := range deliveries {
		waitCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
		deliveries[i], err = acme.WaitFor(waitCtx, d.ID)
		cancel()
		if err != nil {
			return err
		}
	}
	end()
	if err := <-loop; err != nil {
		return err
	}
	return show(deliveries, receiver)
}
