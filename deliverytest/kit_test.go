package deliverytest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	_ "github.com/lib/pq"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

var errLuck = errors.New("no luck")

// hourly is the policy of a host that tries again each hour.
var hourly = retry.Policy{Retries: 3, First: time.Hour, Max: time.Hour}

func retryAfterAnHour(t testing.TB) {
	t.Helper()
	kit := deliverytest.New(t, delivery.WithRetry(hourly))
	siem := kit.Destination("acme", deliverytest.Fail(errLuck), deliverytest.OK())
	if _, err := kit.Org("acme").Deliver(context.Background(), delivery.Request{Payload: payload.JSON("report")}); err != nil {
		t.Fatal(err)
	}
	kit.Process()
	siem.RequireAttempts(1)
	kit.Advance(time.Hour - time.Second)
	siem.RequireAttempts(1)
	kit.Advance(time.Second)
	siem.RequireDelivered(1)
}

func TestRetryAfterAnHour(t *testing.T) {
	t.Parallel()
	retryAfterAnHour(t)
}

// BenchmarkRetryAfterAnHour is a host's whole test: below 50 ms is what the package promises.
func BenchmarkRetryAfterAnHour(b *testing.B) {
	for b.Loop() {
		retryAfterAnHour(b)
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		deliverytest.New(b)
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	if now := kit.Now().String(); now != "2026-01-01 12:00:00 +0000 UTC" {
		t.Errorf("it starts at %s", now)
	}
	start := kit.Now()
	for _, d := range []time.Duration{0, time.Nanosecond, time.Hour, 400 * 24 * time.Hour} {
		before := kit.Now()
		kit.Advance(d)
		if got := kit.Now().Sub(before); got != d {
			t.Errorf("Advance(%v) moved by %v", d, got)
		}
	}
	kit.Destination("acme")
	if at := status(t, kit.DeliveryService, deliver(t, kit.DeliveryService, "x").ID).CreatedAt; !at.Equal(kit.Now().Truncate(time.Microsecond)) {
		t.Errorf("a delivery was accepted at %v, %v after the start", at, at.Sub(start))
	}
}

// moments are when attempts were made, from the start of the clock.
func moments(attempts []deliverytest.Attempt) []string {
	start := time.Date(2026, time.January, 1, 12, 0, 0, 0, time.UTC)
	all := make([]string, len(attempts))
	for i, a := range attempts {
		all[i] = fmt.Sprintf("%d:%v", a.Number, a.At.Sub(start))
	}
	return all
}

func wantMoments(t *testing.T, d *deliverytest.Destination, want ...string) {
	t.Helper()
	if got := moments(d.Attempts()); !slices.Equal(got, want) {
		t.Errorf("attempts at %v, want %v", got, want)
	}
}

func TestAdvanceStopsAtEachMoment(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	failing := kit.Destination("acme", deliverytest.Always(deliverytest.Fail(errLuck)))
	receipt := deliver(t, kit.DeliveryService, "x")
	kit.Advance(10 * time.Minute)
	wantMoments(t, failing, "1:0s", "2:1s", "3:3s", "4:7s", "5:15s", "6:31s")
	i := status(t, kit.DeliveryService, receipt.ID).Items[0]
	if i.State != queue.Dead || i.Reason != queue.Exhausted || i.Attempts[5].EndedAt.Sub(i.Attempts[0].StartedAt) != 31*time.Second {
		t.Errorf("item is %+v", i)
	}
}

func TestAdvanceToNotBefore(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme")
	request(t, kit.DeliveryService, delivery.Request{Payload: payload.JSON(1), NotBefore: kit.Now().Add(36*time.Hour + time.Minute)})
	kit.Process()
	d.RequireNothing()
	kit.Advance(36*time.Hour + 5*time.Minute)
	wantMoments(t, d, "1:36h1m0s")
}

func TestManyOrganizations(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	mine, theirs := kit.Destination("acme"), kit.Destination("globex")
	deliver(t, kit.DeliveryService, "x")
	kit.Process()
	mine.RequireDelivered(1)
	theirs.RequireNothing()
}

func TestKitsShareNothing(t *testing.T) {
	t.Parallel()
	one, two := deliverytest.New(t), deliverytest.New(t)
	a, b := one.Destination("acme"), two.Destination("acme")
	deliver(t, one.DeliveryService, "x")
	one.Advance(time.Hour)
	two.Process()
	a.RequireDelivered(1)
	b.RequireNothing()
	if two.Now().Equal(one.Now()) {
		t.Error("the kits share a clock")
	}
}

func TestParallel(t *testing.T) {
	t.Parallel()
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			retryAfterAnHour(t)
		})
	}
}

// Attempts and Deliver are for any goroutine, also while Run and Advance share the work.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t, delivery.WithWorkers(8))
	d := kit.Destination("acme", deliverytest.Times(10, deliverytest.Fail(errLuck)), deliverytest.Always(deliverytest.OK()))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := kit.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var hosts sync.WaitGroup
	const each = 10
	for range 4 {
		hosts.Go(func() {
			for range each {
				if _, err := kit.Org("acme").Deliver(ctx, delivery.Request{Payload: payload.JSON("x")}); err != nil {
					t.Error(err)
				}
				_ = d.Attempts()
			}
		})
	}
	kit.Advance(10 * time.Second)
	hosts.Wait()
	kit.Advance(time.Minute)
	cancel() // in the middle of whatever Run does: the database in memory must survive it
	running.Wait()
	kit.Advance(time.Minute)
	d.RequireDelivered(4 * each)
}

func TestDatabaseSurvivesCancelledCalls(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme")
	for i := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*5*time.Microsecond)
		_, _ = kit.Org("acme").Deliver(ctx, delivery.Request{Payload: payload.JSON(i)}) // many are cut off
		_, _ = kit.ProcessDue(ctx)
		cancel()
	}
	kit.Advance(time.Minute)
	before := len(d.RequireAttempts(len(d.Attempts())))
	deliver(t, kit.DeliveryService, "x")
	kit.Process()
	d.RequireAttempts(before + 1)
}

type secretive struct {
	Token destination.Secret `json:"token"`
}

func (secretive) DestinationType() string { return "mine" }

func TestHostsOwnHandler(t *testing.T) {
	t.Parallel()
	var got []string
	kit := deliverytest.New(t, delivery.WithHandler("mine", handler.Func(
		func(_ context.Context, req *handler.Request, config secretive) (*handler.Result, error) {
			got = append(got, fmt.Sprintf("%s %d", config.Token.Reveal(), req.Attempt))
			if req.Attempt == 1 {
				return nil, errLuck
			}
			return nil, nil
		})))
	beside := kit.Destination("acme")
	_, err := kit.Org("acme").Destinations().Create(t.Context(), destination.Spec{
		Label: "mine", Default: true, Config: secretive{destination.NewSecret("s3cret")}, // sealed with the kit's key
	})
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, kit.DeliveryService, "x")
	kit.Advance(time.Second)
	if !slices.Equal(got, []string{"s3cret 1", "s3cret 2"}) {
		t.Errorf("the host's handler was called as %q", got)
	}
	beside.RequireDelivered(1)
}

// The host's options rule, field by field where they have fields.
func TestHostsOptions(t *testing.T) {
	t.Parallel()
	var logged strings.Builder
	kit := deliverytest.New(t,
		delivery.WithLogger(slog.New(slog.NewTextHandler(&logged, nil))),
		delivery.WithKeys(delivery.LocalKey("mine", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")),
		delivery.WithRetry(retry.Policy{First: time.Minute, Multiplier: 3}))
	d := kit.Destination("acme", deliverytest.Panic("ouch"), deliverytest.Always(deliverytest.Fail(errLuck)))
	deliver(t, kit.DeliveryService, "x")
	kit.Advance(time.Hour)
	wantMoments(t, d, "1:0s", "2:1m0s", "3:4m0s", "4:9m0s", "5:14m0s", "6:19m0s")
	contains(t, logged.String(), "the handler panicked: ouch")
}

// With one worker, a script means the same in every run.
func TestOneAfterAnother(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	var under atomic.Int32
	d := kit.Destination("acme", deliverytest.Always(deliverytest.Do(func(context.Context, *handler.Request) (*handler.Result, error) {
		if n := under.Add(1); n > 1 {
			t.Errorf("%d attempts at once", n)
		}
		for range 100 {
			runtime.Gosched()
		}
		under.Add(-1)
		return nil, nil
	})))
	var want []string
	for i := range 40 {
		want = append(want, fmt.Sprint(i))
		deliver(t, kit.DeliveryService, want[i])
	}
	kit.Process()
	var got []string
	for _, a := range d.RequireDelivered(len(want)) {
		got = append(got, string(a.Content))
	}
	if !slices.Equal(got, want) {
		t.Errorf("delivered in the order %v", got)
	}
}

func TestWorkers(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t, delivery.WithWorkers(2))
	var both sync.WaitGroup
	both.Add(2)
	d := kit.Destination("acme", deliverytest.Times(2, deliverytest.Do(func(context.Context, *handler.Request) (*handler.Result, error) {
		both.Done()
		both.Wait() // for the attempt that is made at the same time
		return nil, nil
	})))
	deliver(t, kit.DeliveryService, "x")
	deliver(t, kit.DeliveryService, "y")
	kit.Process()
	d.RequireDelivered(2)
}

// In a bubble of testing/synctest, the time that attempts wait for in earnest is free too.
func TestSynctest(t *testing.T) { //nolint:paralleltest // a bubble has no parallel tests
	synctest.Test(t, func(t *testing.T) {
		kit := deliverytest.New(t)
		d := kit.Destination("acme", deliverytest.Do(func(ctx context.Context, _ *handler.Request) (*handler.Result, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}), deliverytest.OK())
		before := time.Now()
		receipt := deliver(t, kit.DeliveryService, "x")
		kit.Advance(time.Second)
		d.RequireDelivered(1)
		if waited := time.Since(before); waited != 30*time.Second {
			t.Errorf("the attempt took %v", waited)
		}
		if e := status(t, kit.DeliveryService, receipt.ID).Items[0].Attempts[0].Error; e.Category != handler.Timeout {
			t.Errorf("it failed as %v: %v", e.Category, e)
		}
	})
}

func TestMaintains(t *testing.T) {
	t.Parallel()
	db := openSQLite(t)
	kit := deliverytest.NewOn(t, db)
	if _, err := kit.Org("acme").Stage(t.Context(), payload.Bytes("x", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	staged := func() (n int) {
		if err := db.QueryRowContext(t.Context(), `select count(*) from delivery_payloads`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	kit.Advance(24 * time.Hour)
	if n := staged(); n != 1 {
		t.Errorf("%d payloads are staged after a day, want 1", n)
	}
	kit.Advance(20 * time.Minute)
	if n := staged(); n != 0 {
		t.Errorf("%d payloads are staged after a day and 20 minutes, want none", n)
	}
}

func TestMaintainsOnTheWay(t *testing.T) {
	t.Parallel()
	db := openSQLite(t)
	kit := deliverytest.NewOn(t, db)
	begun := kit.Now()
	kit.Advance(25 * time.Minute)
	var ran int64
	if err := db.QueryRowContext(t.Context(), `select max(ran_at) from delivery_jobs`).Scan(&ran); err != nil {
		t.Fatal(err)
	}
	if after := time.UnixMicro(ran).Sub(begun); after != 20*time.Minute {
		t.Errorf("maintained last after %v", after)
	}
}

func openSQLite(t *testing.T) *sql.DB {
	t.Helper()
	return openDB(t, "sqlite", dbtest.SQLite(t))
}

func openDB(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestNewOn(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"sqlite", "postgres"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			var db *sql.DB
			if driver == "sqlite" {
				db = openSQLite(t)
			} else {
				db = openDB(t, driver, dbtest.Postgres(t))
			}
			kit := deliverytest.NewOn(t, db, delivery.WithRetry(hourly))
			d := kit.Destination("acme", deliverytest.Fail(errLuck), deliverytest.Crash(), deliverytest.Always(deliverytest.OK()))
			ids := map[bool]string{}
			for _, commit := range []bool{false, true} {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				receipt, err := kit.Org("acme").DeliverTx(t.Context(), tx, delivery.Request{Payload: payload.JSON(commit)})
				if err != nil {
					t.Fatal(err)
				}
				ids[commit] = receipt.ID
				end := tx.Rollback
				if commit {
					end = tx.Commit
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
			}
			kit.Advance(2 * time.Hour)
			wantMoments(t, d, "1:0s", "2:1h0m0s", "2:1h0m30s")
			if a := d.RequireDelivered(1)[0]; string(a.Content) != "true" {
				t.Errorf("delivered %s", a.Content)
			}
			if at := status(t, kit.DeliveryService, ids[true]).CreatedAt; at.Year() != 2026 || at.Month() != time.January || at.Day() != 1 {
				t.Errorf("accepted at %v", at)
			}
			if _, err := kit.Org("acme").Status(t.Context(), ids[false]); !errors.Is(err, delivery.ErrNotFound) {
				t.Errorf("what was rolled back is %v", err)
			}
			if err := kit.Close(); err != nil {
				t.Error(err)
			}
			if err := db.PingContext(t.Context()); err != nil {
				t.Errorf("the host's database was closed: %v", err)
			}
		})
	}
}
