package sqlstore

import (
	"context"
	"database/sql"
	"time"
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
func (tx *Tx) LockGates(ctx context.Context, lanes map[int64]string) ([]GateState, error) {
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
			err := rows.Scan(&g.No, &tokens, Time{&g.TokensAt}, Time{&g.Now})
			g.Tokens = tokens.Float64
			if tx.s.clock != nil || g.Now.IsZero() {
				g.Now = tx.Now
			}
			gates = append(gates, g)
			return err
		}, tx.s.GateQuery(list(nos)))
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
func (tx *Tx) TakeTokens(ctx context.Context, no int64, left float64, at time.Time) error {
	_, err := tx.Exec(ctx, `update delivery_gates set tokens = $2, tokens_at = $3 where destination_no = $1`,
		no, left, tx.Time(at))
	return err
}

// Gate reads the gate of a destination without locking it.
func (tx *Tx) Gate(ctx context.Context, organization string, no int64) (g GateState, err error) {
	g = GateState{No: no, Now: tx.Now}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var tokens sql.NullFloat64
		err := rows.Scan(&tokens, Time{&g.TokensAt})
		g.Tokens = tokens.Float64
		return err
	}, `select tokens, tokens_at from delivery_gates where destination_no = $1 and organization_id = $2`, no, organization)
	return g, err
}
