package systemtest_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// Everything works behind PgBouncer in transaction mode, where each transaction may have another
// session: with lib/pq as it is, with pgx in a mode that keeps no statements prepared.
func TestBehindPgBouncer(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]string{
		"postgres": "", "pgx, described": "&default_query_exec_mode=describe_exec", "pgx, cached descriptions": "&default_query_exec_mode=cache_describe",
		"pgx, undescribed": "&default_query_exec_mode=exec", "pgx, simple": "&default_query_exec_mode=simple_protocol",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, dsn := testkit.OpenNamed(t, "lib/pq")
			driver, _, _ := strings.Cut(name, ",")
			db := testkit.Try(sql.Open(driver, dbtest.Bouncer(t, dsn)+mode)).Must(t)
			t.Cleanup(func() { _ = db.Close() })
			everything(t, db)
		})
	}
}

// everything does all that a host can do with the queue.
func everything(t *testing.T, db *sql.DB) {
	if err := testkit.Migrate(db); err != nil {
		t.Fatal(err)
	}
	f := testkit.NewSwitchable()
	svc := testkit.Service(t, db, f, testkit.Lease(2*time.Second), delivery.WithWorkers(8))
	acme := svc.Org("acme")
	ctx := t.Context()
	plain := testkit.Create(t, acme, destination.Spec{Default: true})
	limited := testkit.Create(t, acme, destination.Spec{Limits: destination.Limits{Concurrency: 2, PerSecond: 1000}})
	ordered := testkit.Create(t, acme, destination.Spec{Limits: destination.Limits{Ordered: true}})
	failing := testkit.Create(t, acme, destination.Spec{})
	f.Fail(failing, testkit.ErrNever)
	all := []string{plain.ID, limited.ID, ordered.ID, failing.ID}

	// Accept: alone, together, in the host's transaction, repeated, streamed, staged, later, too
	// late.
	first := testkit.Try(acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k", Topic: "t",
		Tags: []string{"a"}, Metadata: map[string]string{"b": "c"}})).Must(t)
	if r := testkit.Try(acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k", Topic: "t",
		Tags: []string{"a"}, Metadata: map[string]string{"b": "c"}})).Must(t); !r.Duplicate || r.ID != first.ID {
		t.Errorf("repeated: %+v", r)
	}
	var conflict *delivery.ConflictError
	if _, err := acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(2), IdempotencyKey: "k"}); !errors.As(err, &conflict) {
		t.Errorf("conflict: %v", err)
	}
	receipts := testkit.Try(acme.DeliverMany(ctx, []delivery.Request{
		{Payload: payload.JSON(3), Destinations: all}, {Payload: payload.Reader("x.txt", strings.NewReader(strings.Repeat("x", 200_000)))},
	})).Must(t)
	staged := testkit.Try(acme.Stage(ctx, payload.Reader("s.txt", strings.NewReader("staged")))).Must(t)
	tx := testkit.Try(db.BeginTx(ctx, nil)).Must(t)
	inTx := testkit.Try(acme.DeliverTx(ctx, tx, delivery.Request{Payload: staged, IdempotencyKey: "tx"})).Must(t)
	if _, err := acme.DeliverTx(ctx, tx, delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "tx"}); !errors.As(err, &conflict) {
		t.Errorf("conflict in a transaction: %v", err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	later := testkit.Try(acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(4), NotBefore: time.Now().Add(time.Hour)})).Must(t)
	late := testkit.Try(acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(5), Destinations: []string{failing.ID},
		Deadline: time.Now().Add(50 * time.Millisecond), NotBefore: time.Now().Add(49 * time.Millisecond)})).Must(t)

	// Deliver, with heartbeats and retries.
	slow := make(chan struct{})
	var begun sync.Once
	otherwise := f.Do
	f.Do = func(ctx context.Context, req *handler.Request) (*handler.Result, error) {
		if req.DeliveryID != first.ID {
			return otherwise(ctx, req)
		}
		begun.Do(func() { close(slow) })
		select {
		case <-time.After(4 * time.Second): // longer than a lease
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	testkit.Run(t, svc)
	<-slow
	for _, id := range []string{first.ID, receipts[0].ID, receipts[1].ID, inTx.ID, late.ID} {
		s, err := acme.WaitFor(testkit.Within(t, time.Minute), id)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]queue.Summary{receipts[0].ID: queue.PartiallyFailed, late.ID: queue.Failed}[id]
		if want == "" {
			want = queue.Completed
		}
		if s.State != want {
			t.Errorf("%s is %s", id, testkit.Show(s))
		}
	}

	// Cancel, retry, replay, list, purge, change and delete.
	if err := acme.Cancel(ctx, later.ID); err != nil {
		t.Error(err)
	}
	f.Heal(failing)
	if err := acme.Retry(ctx, receipts[0].ID); err != nil {
		t.Error(err)
	}
	if s := testkit.Try(acme.WaitFor(testkit.Within(t, time.Minute), receipts[0].ID)).Must(t); s.State != queue.Completed {
		t.Errorf("retried, it is %s", testkit.Show(s))
	}
	replayed := testkit.Try(acme.Replay(ctx, delivery.Replay{Delivery: receipts[1].ID})).Must(t)
	if s := testkit.Try(acme.WaitFor(testkit.Within(t, time.Minute), replayed.ID)).Must(t); s.State != queue.Completed {
		t.Errorf("replayed, it is %s", testkit.Show(s))
	}
	if n := testkit.CountDead(t, acme, delivery.DeadFilter{All: true}); n != 1 {
		t.Errorf("%d dead letters", n)
	}
	if n, err := acme.DeadLetters().Purge(ctx, delivery.DeadFilter{All: true}); err != nil || n != 1 {
		t.Errorf("purged %d, %v", n, err)
	}
	off := true
	if _, err := acme.Destinations().Update(ctx, plain.ID, destination.Patch{Disabled: &off}); err != nil {
		t.Error(err)
	}
	held := testkit.Try(acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(6), Destinations: []string{plain.ID}})).Must(t)
	if err := acme.Destinations().Delete(ctx, plain.ID, destination.CancelPending); err != nil {
		t.Error(err)
	}
	if s := testkit.Try(acme.Status(ctx, held.ID)).Must(t); s.State != queue.AllCancelled {
		t.Errorf("of a deleted destination, it is %s", testkit.Show(s))
	}
	if _, err := svc.Maintain(ctx); err != nil {
		t.Error(err)
	}
}
