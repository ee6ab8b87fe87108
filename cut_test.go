package delivery_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/queue"
)

// cuttable opens db once more, with a switch that has the next COMMIT answered by a broken connection: after it took effect,
// or instead of it.
func cuttable(t *testing.T, db *sql.DB, effective bool) (*sql.DB, *atomic.Bool) {
	t.Helper()
	cut := &atomic.Bool{}
	wrapped := sql.OpenDB(&cutter{db, cut, effective})
	t.Cleanup(func() { _ = wrapped.Close() })
	return wrapped, cut
}

var errCut = errors.New("the connection was cut")

// cutter hands out connections that database/sql opened, one for each of its own.
type cutter struct {
	db        *sql.DB
	cut       *atomic.Bool
	effective bool
}

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
	if !c.cut.CompareAndSwap(true, false) {
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

// A COMMIT whose outcome is not known is looked for, whether it took effect or not.
func TestRetryWhenTheCommitIsAmbiguous(t *testing.T) {
	t.Parallel()
	for _, name := range databases {
		for _, effective := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, %t", name, effective), func(t *testing.T) {
				t.Parallel()
				f := newSwitchable()
				db, cut := cuttable(t, open(t, name), effective)
				dialect := delivery.Postgres
				if name == "sqlite" {
					dialect = delivery.SQLite
				}
				svc := service(t, db, f, delivery.WithDialect(dialect))
				acme := svc.Org("acme")
				d := create(t, acme, destination.Spec{Default: true})
				f.fail(d, errNever)
				id := send(t, acme, delivery.Request{})
				process(t, svc)
				cut.Store(true)
				if err := acme.Retry(t.Context(), id); err != nil || cut.Load() {
					t.Fatalf("%v, cut %t", err, !cut.Load())
				}
				process(t, svc)
				all := delivery.DeadFilter{All: true}
				cut.Store(true)
				if r, err := acme.DeadLetters().Retry(t.Context(), all); err != nil || r.Items != 1 || cut.Load() {
					t.Fatalf("%+v, %v", r, err)
				}
				process(t, svc)
				if s := status(t, acme, id); len(s.Items[0].Attempts) != 5 || s.State != queue.Failed {
					t.Errorf("status is %s", show(s))
				}
				cut.Store(true)
				receipt := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{Delivery: id}))
				if n := count(t, db, "delivery_deliveries"); n != 2 || status(t, acme, receipt.ID).ReplayOf != id {
					t.Errorf("%d deliveries", n)
				}
				cut.Store(true)
				if n, err := acme.DeadLetters().Purge(t.Context(), all); err != nil || n != 1 || countDead(t, acme, all) != 0 {
					t.Errorf("purged %d, %v", n, err)
				}
			})
		}
	}
}
