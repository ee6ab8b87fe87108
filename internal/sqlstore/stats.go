package sqlstore

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/queue"
)

// LaneCount is how many items of a destination, at one priority, are in a state.
type LaneCount struct {
	Lane   int64
	State  queue.State
	N      int64
	Oldest time.Time // since when the oldest is ready, or was as it was leased; when it is due
}

// LaneCounts counts what waits, of an organization or of Everyone: a system statement. It reads all of it.
func (tx *Tx) LaneCounts(ctx context.Context, organization string) (all []LaneCount, err error) {
	query := `select lane, case when lease <> 0 then 1 else state end, count(*), min(run_at) from delivery_queue`
	var args []any
	if organization != Everyone {
		query += ` where organization_id = $1`
		args = append(args, organization)
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var c LaneCount
		err := rows.Scan(&c.Lane, &c.State, &c.N, Time{&c.Oldest})
		all = append(all, c)
		return err
	}, query+` group by 1, 2`, args...)
	return all, err
}

// Ahead counts the ready items of a lane before a number, up to a limit: a system statement, of one destination.
func (tx *Tx) Ahead(ctx context.Context, lane, seq int64, limit int) (n int, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&n) },
		`select count(*) from (select 1 from delivery_queue where state = 0 and lease = 0 and lane = $1 and seq < $2 limit $3) q`, lane, seq, limit)
	return n, err
}

// Gate reads what is left in a destination's bucket, without locking it.
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

// Present notes that a process attempts items of some types: a system statement.
func (tx *Tx) Present(ctx context.Context, id string, types []string) error {
	_, err := tx.Exec(ctx, `insert into delivery_workers (id, seen_at, types) values ($1, $2, $3)
		on conflict (id) do update set seen_at = excluded.seen_at`, id, tx.s.Time(tx.Now), tx.s.JSON(Encode(types)))
	return err
}

// Workers lists the types that processes attempt which were seen since a time: a system statement.
func (tx *Tx) Workers(ctx context.Context, since time.Time) (types map[string]bool, err error) {
	types = map[string]bool{}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var raw []byte
		var of []string
		if err := rows.Scan(&raw); err != nil {
			return err
		}
		err := Decode("types", raw, &of)
		for _, t := range of {
			types[t] = true
		}
		return err
	}, `select types from delivery_workers where seen_at >= $1`, tx.s.Time(since))
	return types, err
}

// ForgetWorkers removes processes that were last seen before a time: a system statement.
func (tx *Tx) ForgetWorkers(ctx context.Context, before time.Time) error {
	_, err := tx.Exec(ctx, `delete from delivery_workers where seen_at < $1`, tx.s.Time(before))
	return err
}
