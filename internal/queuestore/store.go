// Package queuestore has the statements of the queue: items, their leases, gates and ends, the
// health of destinations, dead letters and statistics. The rules for statements are in package
// sqlstore.
//
// Statements that are the same for all databases are functions on a context and a [sqlstore.Tx].
// The packages postgres and sqlite hold the others, behind [Native]. What needs these, or the
// effects of finishing, is a method of [Store].
package queuestore

import "github.com/deliverykit/delivery/internal/sqlstore"

// Store is the queue on the host's database. It is safe for concurrent use.
type Store struct {
	*sqlstore.Store
	Native
	effects []Effect
}

// New returns the queue of a store. native is of the same database. effects follow those of the
// queue itself in every transaction that finishes items.
func New(store *sqlstore.Store, native Native, effects ...Effect) *Store {
	s := &Store{Store: store, Native: native}
	s.effects = effectsOf(s, effects)
	return s
}
