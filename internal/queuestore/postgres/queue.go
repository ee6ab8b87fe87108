package postgres

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Ranks implements [queuestore.Native].
func (Native) Ranks(ctx context.Context, tx sqlstore.Execer, among []int64) ([]int64, error) {
	return lanes(ctx, tx, ranks, ints(among))
}

// Walk implements [queuestore.Native].
func (Native) Walk(
	ctx context.Context, tx sqlstore.Execer, after, last int64, limit int, known []int64,
) ([]int64, error) {
	from, _ := slices.BinarySearch(known, after+1)
	to, _ := slices.BinarySearch(known, last+1)
	return lanes(ctx, tx, walk, after, last, limit, ints(known[from:to]))
}

func ints(all []int64) string {
	a := newArray(len(all), 20)
	for _, n := range all {
		a.int(n)
	}
	return a.String()
}

func lanes(ctx context.Context, tx sqlstore.Execer, query string, args ...any) ([]int64, error) {
	var all []int64
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var lane int64
		err := rows.Scan(&lane)
		all = append(all, lane)
		return err
	}, query, args...)
	return all, err
}

// Claim implements [queuestore.Native].
func (d Native) Claim(
	ctx context.Context, tx sqlstore.Execer, shares []queuestore.Share, lease int64,
) ([]queuestore.Claimed, error) {
	lane, n, floor := newArray(len(shares), 20), newArray(len(shares), 5), newArray(len(shares), 10)
	var limited, ordered array
	total := 0
	for _, s := range shares {
		lane.int(s.Lane)
		n.int(int64(s.N))
		floor.int(s.Floor)
		switch s.Gate {
		case queuestore.Limited:
			limited.int(s.Lane)
		case queuestore.Ordered:
			ordered.int(s.Lane)
		}
		total += s.N
	}
	all := make([]queuestore.Claimed, 0, total)
	var c queuestore.Claimed
	scanner := sqlstore.NewDeliveryScanner(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Lane, &c.Seq, &c.Attempt,
		&c.Lost, sqlstore.Time{T: &c.Deadline}, &c.Place)
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) (err error) {
		if c.Content, err = scanner.Scan(rows); c.Content != nil {
			c.Content.Organization, c.Content.ID = c.Organization, c.Delivery
		}
		all = append(all, c)
		return err
	}, claim, lane.String(), n.String(), lease, limited.String(), ordered.String(), floor.String())
	return all, err
}

func list(ctx context.Context, tx sqlstore.Execer, query string, args ...any) ([]queuestore.Claimed, error) {
	var all []queuestore.Claimed
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var c queuestore.Claimed
		err := rows.Scan(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Lane, &c.Seq, &c.State, &c.Attempt, &c.Lost,
			&c.Cancel, &c.Gate, sqlstore.Time{T: &c.RunAt}, sqlstore.Time{T: &c.Deadline})
		all = append(all, c)
		return err
	}, query, args...)
	return all, err
}

// keyArrays returns the parameters that find rows by key and fence.
func keyArrays(n int, key func(i int) sqlstore.Key) []any {
	o, d, no, f := newArray(n, 24), newArray(n, 37), newArray(n, 3), newArray(n, 4)
	for i := range n {
		k := key(i)
		o.text(k.Organization)
		d.id(k.Delivery)
		no.int(int64(k.N))
		f.int(int64(k.Fence))
	}
	return []any{o.String(), d.String(), no.String(), f.String()}
}

// End implements [queuestore.Native]. It looks for rows where the claim left them first, and then
// by key for those that are not there.
func (d Native) End(
	ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.AttemptRow, applied func(i int),
) error {
	if !slices.ContainsFunc(attempts, func(a *sqlstore.AttemptRow) bool { return a.Place != "" }) {
		return d.end(ctx, tx, now, attempts, false, applied)
	}
	found := make([]bool, len(attempts))
	err := d.end(ctx, tx, now, attempts, true, func(i int) {
		found[i] = true
		applied(i)
	})
	if err != nil {
		return err
	}
	var left []*sqlstore.AttemptRow
	var leftAt []int
	for i := range attempts {
		if !found[i] {
			left, leftAt = append(left, attempts[i]), append(leftAt, i)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return d.end(ctx, tx, now, left, false, func(i int) { applied(leftAt[i]) })
}

// end is End by key or, with placed, by place.
func (d Native) end(
	ctx context.Context, tx sqlstore.Execer, now time.Time,
	attempts []*sqlstore.AttemptRow, placed bool, applied func(i int),
) error {
	plain := !slices.ContainsFunc(attempts, func(a *sqlstore.AttemptRow) bool { return !a.Plain() })
	var query string
	switch {
	case plain && placed:
		query = endPlaced
	case plain:
		query = end
	case placed:
		query = endDetailedPlaced
	default:
		query = endDetailed
	}
	args := append(attemptArrays(attempts), d.Time(now))
	if !plain {
		args = append(args, detailArrays(attempts)...)
	}
	if placed {
		place := newArray(len(attempts), 14)
		for _, a := range attempts {
			place.opt(a.Place)
		}
		args = append(args, place.String())
	}
	found, deleted := 0, 0
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var position int
		err := rows.Scan(&position, &deleted)
		applied(position - 1)
		found++
		return err
	}, query, args...)
	if err == nil && found != deleted {
		err = sqlstore.ErrConcurrent
	}
	return err
}

// attemptArrays returns the keys, destinations, numbers and durations of attempts as parameters.
func attemptArrays(attempts []*sqlstore.AttemptRow) []any {
	n := len(attempts)
	destination, number, took := newArray(n, 37), newArray(n, 2), newArray(n, 12)
	for i := range attempts {
		a := attempts[i]
		destination.id(a.Destination)
		number.int(int64(a.Number))
		if a.Took == sqlstore.NotBegun {
			took.null()
		} else {
			took.float(a.Took.Seconds())
		}
	}
	args := keyArrays(n, func(i int) sqlstore.Key { return attempts[i].Key })
	return append(args, destination.String(), number.String(), took.String())
}

// detailArrays returns the other columns of attempts as parameters.
func detailArrays(attempts []*sqlstore.AttemptRow) []any {
	var state, reason, category, status, code, text, reference, detail array
	for i := range attempts {
		a := attempts[i]
		state.int(int64(a.State))
		reason.int(int64(a.Reason))
		if f := a.Failure; f == nil {
			category.null()
			status.null()
			code.null()
			text.null()
		} else {
			category.int(int64(f.Category))
			status.int(int64(f.StatusCode))
			code.opt(f.Code)
			text.opt(f.Text)
		}
		reference.opt(string(sqlstore.Encode(a.Reference)))
		detail.opt(string(sqlstore.Encode(a.Detail)))
	}
	args := make([]any, 0, 8)
	for _, a := range []*array{&state, &reason, &category, &status, &code, &text, &reference, &detail} {
		args = append(args, a.String())
	}
	return args
}

// Append implements [queuestore.Native].
func (d Native) Append(ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.AttemptRow) error {
	var next array
	for i := range attempts {
		next.time(attempts[i].NextAt)
	}
	args := append(attemptArrays(attempts), d.Time(now))
	args = append(append(args, detailArrays(attempts)...), next.String())
	_, err := tx.ExecContext(ctx, appendAttempts, args...)
	return err
}

func changed(ctx context.Context, tx sqlstore.Execer, query string, args ...any) ([]queuestore.Changed, error) {
	var all []queuestore.Changed
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var c queuestore.Changed
		err := rows.Scan(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Cancel)
		all = append(all, c)
		return err
	}, query, args...)
	return all, err
}

// Reschedule implements [queuestore.Native].
func (Native) Reschedule(
	ctx context.Context, tx sqlstore.Execer, changes []queuestore.Change,
) ([]queuestore.Changed, error) {
	var state, runAt, charge, lost array
	for _, c := range changes {
		state.int(int64(c.State))
		runAt.time(c.RunAt)
		charge.int(flag(c.Charge))
		lost.int(flag(c.Lost))
	}
	args := keyArrays(len(changes), func(i int) sqlstore.Key { return changes[i].Key })
	return changed(ctx, tx, reschedule, append(args, state.String(), runAt.String(), charge.String(), lost.String())...)
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Due implements [queuestore.Native].
func (d Native) Due(ctx context.Context, tx sqlstore.Execer, after, now time.Time, limit int) (int, error) {
	r, err := tx.ExecContext(ctx, due, d.Time(now), limit, d.Time(after))
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	return int(n), err
}

// GateQuery implements [queuestore.Native].
func (Native) GateQuery(nos string) string {
	return `select destination_no, tokens, tokens_at, clock_timestamp()
		from delivery_gates where destination_no in (` + nos + `) order by destination_no for update skip locked`
}

// InFlight implements [queuestore.Native].
func (Native) InFlight(ctx context.Context, tx sqlstore.Execer, nos map[int64]string) (map[int64]int, error) {
	all := make(map[int64]int, len(nos))
	no, owner := newArray(len(nos), 10), newArray(len(nos), 24)
	for n, organization := range nos {
		no.int(n)
		owner.text(organization)
	}
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var no int64
		var n int
		err := rows.Scan(&no, &n)
		all[no] = n
		return err
	}, inFlight, no.String(), owner.String())
	return all, err
}

// InFlightOf implements [queuestore.Native].
func (Native) InFlightOf(ctx context.Context, tx sqlstore.Execer, organization string) (n int, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&n) }, inFlightOf, organization)
	return n, err
}

// Mark implements [queuestore.Native].
func (Native) Mark(ctx context.Context, tx sqlstore.Execer) (mark int64, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&mark) },
		`select nextval('delivery_seq')`)
	return mark, err
}

// Overdue implements [queuestore.Native].
func (d Native) Overdue(
	ctx context.Context, tx sqlstore.Execer, after, now time.Time, limit int,
) ([]queuestore.Claimed, error) {
	return list(ctx, tx, overdue, d.Time(now), limit, d.Time(after))
}

// Pending implements [queuestore.Native].
func (Native) Pending(
	ctx context.Context, tx sqlstore.Execer, organization, delivery string, no int64, limit int,
) ([]queuestore.Claimed, error) {
	if delivery != "" {
		return list(ctx, tx, pendingOfDelivery, organization, delivery, limit)
	}
	return list(ctx, tx, pendingOfDestination, organization, no, limit)
}
