package delivery_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"sync/atomic"
	"testing"
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
