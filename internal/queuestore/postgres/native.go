// Package postgres is the native SQL of the queue on PostgreSQL 13 and later. Three rules of its
// statements come from the measurements in docs/design/queue.md:
//
//   - Updates and deletes go by ctid = any(array(...)) from a LATERAL with a LIMIT. No statistics
//     turn that into a sequential scan.
//   - Bounds of indexes are parameters, never volatile functions.
//   - Rows are locked by one statement and counted by a later one.
package postgres

import (
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore/postgres"
)

// Native implements [queuestore.Native]. It writes parameters as [postgres.Dialect] does.
type Native struct{ postgres.Dialect }

var _ queuestore.Native = Native{}
