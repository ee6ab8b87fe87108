package queuestore

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/queue"
)

// Buckets are the upper bounds of the buckets by which delivery_minutes counts how long attempts
// took. One more bucket has no bound.
var Buckets = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute,
}

// Minute is what attempts at a destination came to in one minute, or in several.
type Minute struct {
	No           int64
	Organization string
	At           time.Time // when it began
	Delivered    int64     // items
	Failed       int64     // attempts
	Dead         int64     // items
	Took         float64   // seconds, all attempts together
	Attempts     [len(Buckets) + 1]int64
}

// Add counts an outcome, and reports whether it counted.
func (m *Minute) Add(o *Outcome) bool {
	switch {
	case o.State == queue.Delivered:
		m.Delivered++
	case o.State == queue.Dead:
		m.Dead++
	case o.Took == sqlstore.NotBegun || o.Failure == nil || o.Reason == queue.Released:
		return false
	}
	if o.Took == sqlstore.NotBegun {
		return true
	}
	if o.Failure != nil {
		m.Failed++
	}
	m.Took += o.Took.Seconds()
	bucket, _ := slices.BinarySearch(Buckets[:], o.Took)
	m.Attempts[bucket]++
	return true
}

// Merge adds the counts of another.
func (m *Minute) Merge(other *Minute) {
	m.Delivered += other.Delivered
	m.Failed += other.Failed
	m.Dead += other.Dead
	m.Took += other.Took
	for i, n := range other.Attempts {
		m.Attempts[i] += n
	}
}

const maxMinutes = 500 // of one statement

// AddMinutes adds statistics to those that are stored: a system statement. It sorts minutes into
// the order in which all processes lock the rows.
func AddMinutes(ctx context.Context, tx *sqlstore.Tx, minutes []*Minute) error {
	slices.SortFunc(minutes, func(a, b *Minute) int {
		return cmp.Or(cmp.Compare(a.Organization, b.Organization), cmp.Compare(a.No, b.No), a.At.Compare(b.At))
	})
	for chunk := range slices.Chunk(minutes, maxMinutes) {
		if err := addMinutes(ctx, tx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// addMinutes writes the counts into the statement: as parameters they would cost more.
func addMinutes(ctx context.Context, tx *sqlstore.Tx, minutes []*Minute) error {
	columns := append([]string{"delivered", "failed", "dead", "took"}, bucketColumns()...)
	sums := make([]string, len(columns))
	for i, c := range columns {
		sums[i] = c + ` = delivery_minutes.` + c + ` + excluded.` + c
	}
	query := []byte(`insert into delivery_minutes (organization_id, minute, destination_no, ` +
		strings.Join(columns, ", ") + `) values `)
	var args []any
	parameter := func(v any) {
		args = append(args, v)
		query = strconv.AppendInt(append(query, '$'), int64(len(args)), 10)
	}
	for i, m := range minutes {
		if i > 0 {
			query = append(query, ',')
		}
		query = append(query, '(')
		parameter(m.Organization)
		query = append(query, ',')
		parameter(tx.Time(m.At))
		for _, n := range []int64{m.No, m.Delivered, m.Failed, m.Dead} {
			query = strconv.AppendInt(append(query, ','), n, 10)
		}
		query = strconv.AppendFloat(append(query, ','), m.Took, 'f', -1, 64)
		for _, n := range m.Attempts {
			query = strconv.AppendInt(append(query, ','), n, 10)
		}
		query = append(query, ')')
	}
	_, err := tx.Exec(ctx, string(query)+` on conflict (organization_id, destination_no, minute) do update set `+
		strings.Join(sums, ", "), args...)
	return err
}

// bucketColumns are the columns of delivery_minutes that count attempts.
func bucketColumns() []string {
	columns := make([]string, len(Buckets)+1)
	for i := range columns {
		columns[i] = `t` + strconv.Itoa(i)
	}
	return columns
}

// attempted is the number of attempts that a row of delivery_minutes counts.
func attempted() string { return strings.Join(bucketColumns(), `+`) }

// Sum adds up the statistics of an organization's destination since a time. With no 0 it adds up
// those of all destinations, and with [sqlstore.Everyone] those of all organizations: then it is a
// system statement.
func Sum(ctx context.Context, tx *sqlstore.Tx, organization string, no int64, since time.Time) (m Minute, err error) {
	query := `select coalesce(sum(delivered), 0), coalesce(sum(failed), 0), coalesce(sum(dead), 0),
		coalesce(sum(took), 0)`
	into := []any{&m.Delivered, &m.Failed, &m.Dead, &m.Took}
	for i := range m.Attempts {
		query += `, coalesce(sum(t` + strconv.Itoa(i) + `), 0)`
		into = append(into, &m.Attempts[i])
	}
	query += ` from delivery_minutes where minute >= $1`
	args := []any{tx.Time(since)}
	if organization != sqlstore.Everyone {
		args = append(args, organization)
		query += ` and organization_id = $` + strconv.Itoa(len(args))
	}
	if no != 0 {
		args = append(args, no)
		query += ` and destination_no = $` + strconv.Itoa(len(args))
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(into...) }, query, args...)
	return m, err
}

// UsageRow is what a destination has been used for in all its time.
type UsageRow struct {
	Delivered, Dead, Attempts, Failed int64
	LastAt                            time.Time // the minute of the last attempt
}

// Usage adds up the statistics of a destination that are left, and the sum that [ExpireMinutes]
// kept.
func Usage(ctx context.Context, tx *sqlstore.Tx, organization string, no int64) (u UsageRow, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		return rows.Scan(&u.Delivered, &u.Dead, &u.Attempts, &u.Failed, sqlstore.Time{T: &u.LastAt})
	}, `select coalesce(sum(delivered), 0), coalesce(sum(dead), 0), coalesce(sum(attempts), 0),
		coalesce(sum(failed), 0),
			max(case when attempts > 0 then at end)
		from (select delivered, dead, `+attempted()+` as attempts, failed, minute as at
			from delivery_minutes where organization_id = $1 and destination_no = $2
			union all select delivered, dead, attempts, failed, last_at
			from delivery_usage where organization_id = $1 and destination_no = $2) u`, organization, no)
	return u, err
}

// ExpireMinutes removes statistics of minutes before a time, and adds them to the usage of their
// destinations: a system statement.
func ExpireMinutes(ctx context.Context, tx *sqlstore.Tx, before time.Time, limit int) (n int64, err error) {
	type used struct {
		UsageRow
		organization string
	}
	by := map[int64]*used{}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var of string
		var no int64
		var at time.Time
		var u UsageRow
		err := rows.Scan(&of, &no, sqlstore.Time{T: &at}, &u.Delivered, &u.Dead, &u.Attempts, &u.Failed)
		if err != nil {
			return err
		}
		n++
		sum := by[no]
		if sum == nil {
			sum = &used{organization: of}
			by[no] = sum
		}
		sum.Delivered += u.Delivered
		sum.Dead += u.Dead
		sum.Attempts += u.Attempts
		sum.Failed += u.Failed
		if u.Attempts > 0 && at.After(sum.LastAt) {
			sum.LastAt = at
		}
		return nil
	}, `delete from delivery_minutes where (organization_id, destination_no, minute) in (
		select organization_id, destination_no, minute from delivery_minutes where minute < $1 limit $2)
		returning organization_id, destination_no, minute, delivered, dead, `+attempted()+`, failed`,
		tx.Time(before), limit)
	if err != nil {
		return 0, err
	}
	for _, no := range slices.Sorted(maps.Keys(by)) {
		u := by[no]
		_, err := tx.Exec(ctx, `insert into delivery_usage
			(destination_no, organization_id, delivered, dead, attempts, failed, last_at)
			values ($1, $2, $3, $4, $5, $6, $7) on conflict (destination_no) do update set
			delivered = delivery_usage.delivered + excluded.delivered, dead = delivery_usage.dead + excluded.dead,
			attempts = delivery_usage.attempts + excluded.attempts, failed = delivery_usage.failed + excluded.failed,
			last_at = case when excluded.last_at is null or delivery_usage.last_at > excluded.last_at
				then delivery_usage.last_at else excluded.last_at end`,
			no, u.organization, u.Delivered, u.Dead, u.Attempts, u.Failed, tx.Time(u.LastAt))
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}
