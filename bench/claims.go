package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

// claims notes how long each transaction took that claimed items, from its beginning to the end of
// its COMMIT.
type claims struct {
	mu   sync.Mutex
	took []time.Duration
}

func (c *claims) note(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = append(c.took, took)
}

// forget begins anew.
func (c *claims) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = nil
}

// open opens a database by lib/pq, and notes the claims made through it.
func (c *claims) open(url string) (*sql.DB, error) {
	inner, err := pq.NewConnector(url)
	if err != nil {
		return nil, err
	}
	return pooled(sql.OpenDB(&timedConnector{inner, c})), nil
}

type timedConnector struct {
	driver.Connector
	claims *claims
}

func (t *timedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := t.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	all, ok := c.(conn)
	if !ok {
		return nil, errors.New("bench: lib/pq's connections have changed")
	}
	return &timedConn{conn: all, claims: t.claims}, nil
}

// conn is what database/sql uses of lib/pq's connections.
type conn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type timedConn struct {
	conn
	claims *claims

	began    time.Time
	claiming bool
}

func (t *timedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	t.began, t.claiming = time.Now(), false
	tx, err := t.conn.BeginTx(ctx, opts)
	return &timedTx{tx, t}, err
}

func (t *timedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	t.claiming = t.claiming || strings.Contains(query, "set lease = $3")
	return t.conn.QueryContext(ctx, query, args)
}

type timedTx struct {
	driver.Tx
	conn *timedConn
}

func (t *timedTx) Commit() error {
	err := t.Tx.Commit()
	if err == nil && t.conn.claiming {
		t.conn.claims.note(time.Since(t.conn.began))
	}
	return err
}
