package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
	"github.com/deliverykit/delivery/queue"
)

// Ranks implements [queuestore.Native]. It lists all ranks: a look at each of the given ones costs
// as much.
func (Native) Ranks(ctx context.Context, tx sqlstore.Execer, _ []int64) ([]int64, error) {
	return lanes(ctx, tx, ranks)
}

// Walk implements [queuestore.Native]. It needs no known lanes: there are no dead rows to step
// over, and few leased ones.
func (Native) Walk(
	ctx context.Context, tx sqlstore.Execer, after, last int64, limit int, _ []int64,
) ([]int64, error) {
	return lanes(ctx, tx, walk, after, last, limit)
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

// Claim implements [queuestore.Native]. Nobody else writes meanwhile, so it leases the items that
// it has read.
func (Native) Claim(
	ctx context.Context, tx sqlstore.Execer, shares []queuestore.Share, id int64,
) ([]queuestore.Claimed, error) {
	var all []queuestore.Claimed
	var c queuestore.Claimed
	scanner := sqlstore.NewDeliveryScanner(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Lane, &c.Seq, &c.Attempt,
		&c.Lost, sqlstore.Time{T: &c.Deadline})
	for _, s := range shares {
		c.Gate = s.Gate
		err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) (err error) {
			if c.Content, err = scanner.Scan(rows); c.Content != nil {
				c.Content.Organization, c.Content.ID = c.Organization, c.Delivery
			}
			all = append(all, c)
			return err
		}, claim, s.Lane, s.N)
		if err != nil {
			return nil, err
		}
		if _, err := tx.ExecContext(ctx, lease, s.Lane, s.N, id, int(s.Gate)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// matching is the condition that finds an item by its key and fence.
const matching = ` where organization_id = ?1 and delivery_id = ?2 and n = ?3 and fence = ?4 `

// End implements [queuestore.Native].
func (d Native) End(
	ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.AttemptRow, applied func(i int),
) error {
	for i, a := range attempts {
		if a.State == queue.Dead {
			_, err := tx.ExecContext(ctx, bury,
				a.Organization, a.Delivery, a.N, a.Fence, a.Destination, int(a.Reason), d.Time(now))
			if err != nil {
				return err
			}
		}
		r, err := tx.ExecContext(ctx, `delete from delivery_queue`+matching, a.Organization, a.Delivery, a.N, a.Fence)
		if err != nil {
			return err
		}
		n, err := r.RowsAffected()
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		if err := d.Append(ctx, tx, now, attempts[i:i+1]); err != nil {
			return err
		}
		applied(i)
	}
	return nil
}

// Reschedule implements [queuestore.Native].
func (d Native) Reschedule(
	ctx context.Context, tx sqlstore.Execer, changes []queuestore.Change,
) ([]queuestore.Changed, error) {
	seq, err := sqlite.Next(ctx, tx, len(changes))
	if err != nil {
		return nil, err
	}
	var all []queuestore.Changed
	for i, c := range changes {
		err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
			changed := queuestore.Changed{Key: c.Key}
			err := rows.Scan(&changed.Cancel)
			all = append(all, changed)
			return err
		}, reschedule, c.Organization, c.Delivery, c.N, c.Fence,
			int(c.State), d.Time(c.RunAt), c.Charge, c.Lost, seq+int64(i))
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Append implements [queuestore.Native].
func (d Native) Append(ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.AttemptRow) error {
	for _, a := range attempts {
		var category, status, code, text, took any
		if f := a.Failure; f != nil {
			category, status, code, text = int(f.Category), f.StatusCode, sqlstore.Null(f.Code), sqlstore.Null(f.Text)
		}
		if a.Took != sqlstore.NotBegun {
			took = a.Took.Seconds()
		}
		if _, err := tx.ExecContext(ctx, `insert into delivery_attempts
			(organization_id, delivery_id, n, fence, destination_id, attempt, took, ended_at, state, reason, category,
			status_code, code, error, reference, detail, next_at)
			values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)`,
			a.Organization, a.Delivery, a.N, a.Fence, a.Destination, a.Number, took, d.Time(now),
			int(a.State), int(a.Reason),
			category, status, code, text, d.JSON(sqlstore.Encode(a.Reference)), d.JSON(sqlstore.Encode(a.Detail)),
			d.Time(a.NextAt)); err != nil {
			return err
		}
	}
	return nil
}

// Due implements [queuestore.Native]. Items become ready in the order of their times.
func (d Native) Due(ctx context.Context, tx sqlstore.Execer, _, now time.Time, limit int) (int, error) {
	rows, err := list(ctx, tx, due, d.Time(now), limit)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	seq, err := sqlite.Next(ctx, tx, len(rows))
	if err != nil {
		return 0, err
	}
	for i, r := range rows {
		_, err := tx.ExecContext(ctx, `update delivery_queue
			set state = 0, seq = case when gated = 2 then seq else ?5 end`+matching,
			r.Organization, r.Delivery, r.N, r.Fence, seq+int64(i))
		if err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// GateQuery implements [queuestore.Native]. There is one writer, so the time is that of its
// transaction: null.
func (Native) GateQuery(nos string) string {
	return `select destination_no, tokens, tokens_at, null
		from delivery_gates where destination_no in (` + nos + `) order by destination_no`
}

// inFlight is not in a file, because it lists numbers: in_flight_of.sql says why it names the
// index.
const inFlight = `select lane & 4294967295, count(*) from delivery_queue indexed by delivery_queue_gated
 where organization_id = ?1 and lane & 4294967295 in (%s) and gated <> 0 and (state <> 0 or lease <> 0) group by 1`

// InFlight implements [queuestore.Native].
func (Native) InFlight(ctx context.Context, tx sqlstore.Execer, nos map[int64]string) (map[int64]int, error) {
	all := make(map[int64]int, len(nos))
	of := map[string][]string{}
	for no, organization := range nos {
		of[organization] = append(of[organization], strconv.FormatInt(no, 10))
	}
	for organization, list := range of {
		err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
			var no int64
			var n int
			err := rows.Scan(&no, &n)
			all[no] = n
			return err
		}, fmt.Sprintf(inFlight, strings.Join(list, ", ")), organization)
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// InFlightOf implements [queuestore.Native].
func (Native) InFlightOf(ctx context.Context, tx sqlstore.Execer, organization string) (n int, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&n) }, inFlightOf, organization)
	return n, err
}

// Mark implements [queuestore.Native].
func (Native) Mark(ctx context.Context, tx sqlstore.Execer) (int64, error) {
	first, err := sqlite.Next(ctx, tx, 1)
	return first, err
}

// Overdue implements [queuestore.Native].
func (d Native) Overdue(
	ctx context.Context, tx sqlstore.Execer, _, now time.Time, limit int,
) ([]queuestore.Claimed, error) {
	return list(ctx, tx, overdue, d.Time(now), limit)
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
