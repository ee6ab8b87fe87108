package systemtest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// cuts breaks the connection on a COMMIT.
type cuts interface {
	Cut(nth int) // the nth from now
	Spare() bool // no more; it reports whether there was none
}

// cuttable opens a database whose connections break on a COMMIT: after it took effect, or instead
// of it. Of PostgreSQL, a proxy breaks them.
func cuttable(t *testing.T, name string, effective bool) (*sql.DB, cuts) {
	t.Helper()
	db, driver, dsn := testkit.OpenNamed(t, name)
	if name == "sqlite" {
		c := &cutter{db: db, effective: effective}
		wrapped := sql.OpenDB(c)
		t.Cleanup(func() { _ = wrapped.Close() })
		return wrapped, c
	}
	proxy, through := dbtest.NewProxy(t, dsn)
	proxy.Effective = effective
	db = testkit.Try(sql.Open(driver, through)).Must(t)
	t.Cleanup(func() { _ = db.Close() })
	return db, proxy
}

var errCut = errors.New("the connection was cut")

// cutter hands out connections that database/sql opened, one for each of its own.
type cutter struct {
	db        *sql.DB
	left      atomic.Int64 // commits until one is cut; 0: none is
	effective bool
}

func (c *cutter) Cut(nth int) { c.left.Store(int64(nth)) }

func (c *cutter) Spare() bool { return c.left.Swap(0) > 0 }

func (c *cutter) Driver() driver.Driver { return c.db.Driver() }

func (c *cutter) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &cutConn{c, conn, nil}, nil
}

type cutConn struct {
	*cutter
	conn *sql.Conn
	tx   *sql.Tx
}

func (c *cutConn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }
func (c *cutConn) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }
func (c *cutConn) Close() error                        { return c.conn.Close() }

// PrepareContext prepares nothing: the statement is run as it is.
func (c *cutConn) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return &cutStmt{c, query}, nil
}

type cutStmt struct {
	*cutConn
	query string
}

func (s *cutStmt) Close() error                               { return nil }
func (s *cutStmt) NumInput() int                              { return -1 }
func (s *cutStmt) Exec([]driver.Value) (driver.Result, error) { return nil, errors.ErrUnsupported }
func (s *cutStmt) Query([]driver.Value) (driver.Rows, error)  { return nil, errors.ErrUnsupported }

func (s *cutStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.cutConn.ExecContext(ctx, s.query, args)
}

func (s *cutStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.cutConn.QueryContext(ctx, s.query, args)
}

func (c *cutConn) BeginTx(ctx context.Context, _ driver.TxOptions) (_ driver.Tx, err error) {
	c.tx, err = c.conn.BeginTx(context.WithoutCancel(ctx), nil)
	return c, err
}

func (c *cutConn) Rollback() error {
	defer func() { c.tx = nil }()
	return c.tx.Rollback()
}

func (c *cutConn) Commit() error {
	defer func() { c.tx = nil }()
	if c.left.Load() == 0 || c.left.Add(-1) > 0 {
		return c.tx.Commit()
	}
	if !c.effective {
		return errors.Join(errCut, c.tx.Rollback())
	}
	return errors.Join(errCut, c.tx.Commit())
}

func (c *cutConn) CheckNamedValue(*driver.NamedValue) error { return nil } // the driver below does

func values(args []driver.NamedValue) []any {
	all := make([]any, len(args))
	for i, a := range args {
		all[i] = a.Value
	}
	return all
}

func (c *cutConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.tx == nil { // of a test, outside of a transaction
		return c.conn.ExecContext(ctx, query, values(args)...)
	}
	return c.tx.ExecContext(ctx, query, values(args)...)
}

func (c *cutConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.tx == nil { // of a test, outside of a transaction
		rows, err := c.conn.QueryContext(ctx, query, values(args)...) //nolint:rowserrcheck // Next does
		return cutRows{rows}, err
	}
	rows, err := c.tx.QueryContext(ctx, query, values(args)...) //nolint:rowserrcheck // Next does
	return cutRows{rows}, err
}

type cutRows struct{ *sql.Rows }

func (r cutRows) Columns() []string {
	names, _ := r.Rows.Columns()
	return names
}

func (r cutRows) Next(dest []driver.Value) error {
	if !r.Rows.Next() {
		if err := r.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	got, targets := make([]any, len(dest)), make([]any, len(dest))
	for i := range dest {
		targets[i] = &got[i]
	}
	err := r.Scan(targets...)
	for i := range dest {
		dest[i] = got[i]
	}
	return err
}

// scene is what a write finds.
type scene struct {
	*testing.T
	db   *sql.DB
	svc  *delivery.DeliveryService
	org  *delivery.Org
	fake *testkit.Switchable
	*testkit.Clock
	dest *destination.Destination
	id   string // of a delivery
}

// writes are all writes: by a call, which must return no error, or of the engine, which may but has
// to make up for it.
var writes = []struct {
	name    string
	prepare func(s *scene)
	call    func(s *scene) error
	engine  bool
}{
	{name: "deliver", call: func(s *scene) error { return s.deliver(1) }},
	{name: "deliver with a key", call: func(s *scene) error {
		_, err := s.org.Deliver(s.Context(), delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"})
		return err
	}},
	{name: "deliver together", call: func(s *scene) error {
		var wg sync.WaitGroup
		errs := make([]error, 12)
		for i := range errs {
			wg.Go(func() { errs[i] = s.deliver(i) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}},
	{name: "deliver many", call: func(s *scene) error {
		_, err := s.org.DeliverMany(s.Context(), []delivery.Request{{Payload: payload.JSON(1)}, {Payload: payload.JSON(2), IdempotencyKey: "k"}})
		return err
	}},
	{name: "deliver a stream", call: func(s *scene) error {
		_, err := s.org.Deliver(s.Context(), delivery.Request{Payload: payload.Reader("x", strings.NewReader(strings.Repeat("x", 3<<19)))})
		return err
	}},
	{name: "deliver in the host's transaction, with a key and again", call: func(s *scene) error {
		for {
			tx, err := s.db.BeginTx(s.Context(), nil)
			if err != nil {
				return err
			}
			if _, err = s.org.DeliverTx(s.Context(), tx, delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"}); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			if err = tx.Commit(); err == nil {
				return nil
			}
		}
	}},
	{name: "stage", call: func(s *scene) error {
		_, err := s.org.Stage(s.Context(), payload.Bytes("x", []byte(strings.Repeat("x", 3<<19))))
		return err
	}},
	{name: "claim and end", prepare: (*scene).one, call: (*scene).work, engine: true},
	{name: "claim and reschedule", prepare: func(s *scene) {
		s.fake.Fail(s.dest, errors.New("not now"))
		s.one()
	}, call: (*scene).work, engine: true},
	{name: "claim and bury", prepare: func(s *scene) {
		s.fake.Fail(s.dest, testkit.ErrNever)
		s.one()
	}, call: (*scene).work, engine: true},
	{name: "make ready what is due", prepare: func(s *scene) {
		s.fake.Fail(s.dest, errors.New("not now"))
		s.one()
		testkit.Process(s.T, s.svc)
		s.fake.Heal(s.dest)
		s.Advance(2000 * time.Hour)
	}, call: (*scene).work, engine: true},
	{name: "end what is too late", prepare: func(s *scene) {
		s.id = testkit.Send(s.T, s.org, delivery.Request{NotBefore: s.Now().Add(time.Hour), Deadline: s.Now().Add(2 * time.Hour)})
		s.Advance(3 * time.Hour)
	}, call: (*scene).work, engine: true},
	{name: "cancel", prepare: (*scene).one, call: func(s *scene) error { return s.org.Cancel(s.Context(), s.id) }},
	{name: "retry", prepare: (*scene).dead, call: func(s *scene) error { return s.org.Retry(s.Context(), s.id) }},
	{name: "retry by filter", prepare: (*scene).dead, call: func(s *scene) error {
		r, err := s.org.DeadLetters().Retry(s.Context(), delivery.DeadFilter{All: true})
		if r.Items != 1 {
			s.Errorf("%+v were retried", r)
		}
		return err
	}},
	{name: "purge", prepare: (*scene).dead, call: func(s *scene) error {
		n, err := s.org.DeadLetters().Purge(s.Context(), delivery.DeadFilter{All: true})
		if n != 1 {
			s.Errorf("%d were purged", n)
		}
		return err
	}},
	{name: "replay", prepare: (*scene).dead, call: func(s *scene) error {
		_, err := s.org.Replay(s.Context(), delivery.Replay{Delivery: s.id})
		return err
	}},
	{name: "create a destination", call: func(s *scene) error {
		_, err := s.org.Destinations().Create(s.Context(), destination.Spec{Label: "new", Config: testkit.Script{Name: "n"}})
		return err
	}},
	{name: "change a destination", call: func(s *scene) error {
		d, err := s.org.Destinations().Update(s.Context(), s.dest.ID, destination.Patch{Label: destination.Set("changed"), IfVersion: s.dest.Version})
		if err == nil && (d.Label != "changed" || d.Version != s.dest.Version+1) {
			s.Errorf("it is %+v", d)
		}
		return err
	}},
	{name: "delete a destination", prepare: (*scene).one, call: func(s *scene) error {
		return s.org.Destinations().Delete(s.Context(), s.dest.ID, destination.CancelPending)
	}},
	{name: "maintain", prepare: func(s *scene) {
		_ = testkit.Try(s.org.Deliver(s.Context(), delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"})).Must(s.T)
		_ = testkit.Try(s.org.Stage(s.Context(), payload.Bytes("x", []byte("x")))).Must(s.T)
		s.Advance(100 * time.Hour)
	}, call: func(s *scene) error {
		_, err := s.svc.Maintain(s.Context())
		return err
	}, engine: true},
}

func (s *scene) deliver(i int) error {
	_, err := s.org.Deliver(s.Context(), delivery.Request{Payload: payload.JSON(i)})
	return err
}

func (s *scene) one() { s.id = testkit.Send(s.T, s.org, delivery.Request{}) }

func (s *scene) dead() {
	s.fake.Fail(s.dest, testkit.ErrNever)
	s.one()
	testkit.Process(s.T, s.svc)
	s.fake.Heal(s.dest)
}

func (s *scene) work() error {
	_, err := s.svc.ProcessDue(s.Context())
	return err
}

// tables are what the writes leave, without what names or times it, and without leases that were
// lost.
var tables = []string{
	"delivery_deliveries", "delivery_payloads where complete", "delivery_payload_chunks", "delivery_idempotency",
	"delivery_queue where state = 0", "delivery_queue where lease <> 0", "delivery_queue where state = 2", "delivery_leases", "delivery_dead_letters",
	"delivery_attempts where state = 0 and reason <> 11", "delivery_attempts where state = 2", "delivery_attempts where state = 3",
	"delivery_attempts where state = 4", "delivery_attempts where state = 5",
	"delivery_destinations where deleted_at is null", "delivery_destinations where version > 1", "delivery_health where failures > 0",
}

func (s *scene) left() string {
	var b strings.Builder
	for _, table := range tables {
		fmt.Fprintf(&b, "%d of %s, ", testkit.Count(s.T, s.db, table), table)
	}
	fmt.Fprintf(&b, "%d attempted", s.fake.Count())
	return b.String()
}

// Wherever a connection breaks on a COMMIT, whether that took effect or not, a write leaves what it
// leaves otherwise: one row of each, and items that are attempted as often.
func TestWritesSurviveBrokenCommits(t *testing.T) {
	t.Parallel()
	for _, name := range testkit.Databases {
		for _, effective := range []bool{true, false} {
			if !effective && name != "pgx" && !testkit.Soak {
				continue
			}
			t.Run(fmt.Sprintf("%s, %t", name, effective), func(t *testing.T) {
				t.Parallel()
				db, cuts := cuttable(t, name, effective)
				for _, w := range writes {
					run := func(t *testing.T, nth int, want string) (left string, spared bool) {
						dialect := map[bool]delivery.Dialect{true: delivery.SQLite, false: delivery.Postgres}[name == "sqlite"]
						s := &scene{T: t, db: db, fake: testkit.NewSwitchable(), Clock: testkit.NewClock()}
						s.svc = testkit.Service(t, db, s.fake, delivery.WithDialect(dialect), s.Option(), testkit.LogTo(io.Discard),
							delivery.WithRetry(retry.Policy{First: 1000 * time.Hour, Max: 1000 * time.Hour}))
						for _, table := range []string{"deliveries", "payloads", "payload_chunks", "idempotency", "queue", "dead_letters", "attempts", "health", "gates", "jobs", "destinations"} {
							testkit.Exec(t, db, "delete from delivery_"+table)
						}
						s.org = s.svc.Org("acme")
						s.dest = testkit.Create(t, s.org, destination.Spec{Default: true})
						if w.prepare != nil {
							w.prepare(s)
						}
						cuts.Cut(nth)
						err := w.call(s)
						spared = cuts.Spare()
						if err != nil && (!w.engine || spared) {
							t.Error(err)
						}
						if !w.engine {
							return s.left(), spared
						}
						// A lease of which nobody knows ends, and so does that of a chore. A
						// connection that broke may hold its locks for a moment longer.
						s.Advance(time.Hour)
						ctx := testkit.Within(t, 10*time.Second)
						for settled := false; !settled && ctx.Err() == nil; settled = left == want || want == "" {
							if err := w.call(s); err != nil {
								t.Error(err)
							}
							left = s.left()
						}
						return left, spared
					}
					t.Run(w.name, func(t *testing.T) {
						want, _ := run(t, 0, "")
						for nth := 1; ; nth++ {
							got, spared := run(t, nth, want)
							if got != want {
								t.Errorf("with COMMIT %d broken, it left\n%s, otherwise\n%s", nth, got, want)
							}
							if spared {
								t.Logf("%d commits", nth-1)
								break
							}
						}
					})
				}
			})
		}
	}
}
