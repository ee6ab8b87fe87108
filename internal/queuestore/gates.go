package queuestore

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// GateState is the state of a gated destination between claims.
type GateState struct {
	No       int64
	Tokens   float64
	TokensAt time.Time // when Tokens were left; zero: the bucket is full
	Now      time.Time // read under the lock: with an earlier time, some tokens would be refilled twice
}

// LockGates locks the gates of destinations in the order of their numbers, skips those that another
// process has locked, and makes those that are missing: a system statement.
func (s *Store) LockGates(ctx context.Context, tx *sqlstore.Tx, lanes map[int64]string) ([]GateState, error) {
	nos := make([]int64, 0, len(lanes))
	for no := range lanes {
		nos = append(nos, no)
	}
	var gates []GateState
	lock := func() error {
		gates = gates[:0]
		return tx.Query(ctx, func(rows *sql.Rows) error {
			var g GateState
			var tokens sql.NullFloat64
			err := rows.Scan(&g.No, &tokens, sqlstore.Time{T: &g.TokensAt}, sqlstore.Time{T: &g.Now})
			g.Tokens = tokens.Float64
			if s.Clocked() || g.Now.IsZero() {
				g.Now = tx.Now
			}
			gates = append(gates, g)
			return err
		}, s.GateQuery(sqlstore.Numbers(nos)))
	}
	if err := lock(); err != nil || len(gates) == len(nos) {
		return gates, err
	}
	made := int64(0)
	for no, organization := range lanes {
		n, err := tx.Exec(ctx, `insert into delivery_gates (destination_no, organization_id) values ($1, $2)
			on conflict do nothing`, no, organization)
		if err != nil {
			return nil, err
		}
		made += n
	}
	if made == 0 {
		return gates, nil
	}
	return gates, lock()
}

// TakeTokens stores what is left in a bucket: a system statement.
func TakeTokens(ctx context.Context, tx *sqlstore.Tx, no int64, left float64, at time.Time) error {
	_, err := tx.Exec(ctx, `update delivery_gates set tokens = $2, tokens_at = $3 where destination_no = $1`,
		no, left, tx.Time(at))
	return err
}

// GateOf reads the gate of a destination without locking it.
func GateOf(ctx context.Context, tx *sqlstore.Tx, organization string, no int64) (g GateState, err error) {
	g = GateState{No: no, Now: tx.Now}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var tokens sql.NullFloat64
		err := rows.Scan(&tokens, sqlstore.Time{T: &g.TokensAt})
		g.Tokens = tokens.Float64
		return err
	}, `select tokens, tokens_at from delivery_gates where destination_no = $1 and organization_id = $2`,
		no, organization)
	return g, err
}

// LockOrganizations locks the rows of organizations in the order of their names, skips those that
// another process has locked, and makes those that are missing: a system statement.
func LockOrganizations(ctx context.Context, tx *sqlstore.Tx, names []string) (locked map[string]bool, err error) {
	for range 2 {
		locked = map[string]bool{}
		for _, name := range slices.Sorted(slices.Values(names)) {
			err := tx.Query(ctx, func(*sql.Rows) error {
				locked[name] = true
				return nil
			}, `select 1 from delivery_organizations where organization_id = $1`+tx.SkipLocked(), name)
			if err != nil {
				return nil, err
			}
		}
		made := int64(0)
		for _, name := range names {
			if locked[name] {
				continue
			}
			n, err := tx.Exec(ctx, `insert into delivery_organizations (organization_id) values ($1)
				on conflict do nothing`, name)
			if err != nil {
				return nil, err
			}
			made += n
		}
		if made == 0 {
			break
		}
	}
	return locked, nil
}
