// Package postgres is the database PostgreSQL 13 and later: its syntax, its connection and the
// migrations.
package postgres

import "github.com/deliverykit/delivery/internal/sqlstore"

// Dialect implements [sqlstore.Dialect].
type Dialect struct{}

var _ sqlstore.Dialect = Dialect{}
