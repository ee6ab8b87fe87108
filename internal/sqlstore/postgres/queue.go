package postgres

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

const ranks = `
select r.rank from unnest($1::bigint[]) r(rank)
 cross join lateral (select 1 from delivery_queue q where q.state = 0 and q.lease = 0 and q.lane >= r.rank << 32 and q.lane < (r.rank + 1) << 32
   order by q.lane, q.seq limit 1) q`

// Ranks implements sqlstore.Native.
func (Dialect) Ranks(ctx context.Context, tx sqlstore.Execer, among []int64) ([]int64, error) {
	return lanes(ctx, tx, ranks, ints(among))
}

const walk = `
with recursive walk(lane, i, n) as (
  select $1::bigint, 1, 0
  union all
  select x.lane, w.i + (x.lane = k.lane)::int, w.n + 1
    from walk w cross join lateral (select coalesce(($4::bigint[])[w.i], $2::bigint + 1)) k(lane) cross join lateral (
      select coalesce(
        case when k.lane > w.lane + 1 then
          (select q.lane from delivery_queue q where q.state = 0 and q.lease = 0 and q.lane > w.lane and q.lane < k.lane
            order by q.lane, q.seq limit 1) end,
        case when k.lane <= $2::bigint then k.lane end)
      offset 0) x(lane) -- offset 0, or it is evaluated twice
   where x.lane is not null and w.n < $3::int)
select lane from walk where n > 0`

// Walk implements sqlstore.Native.
func (Dialect) Walk(ctx context.Context, tx sqlstore.Execer, after, last int64, limit int, known []int64) ([]int64, error) {
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

const claim = `
with pick as materialized (
  select p.tid from unnest($1::bigint[], $2::int[], $6::bigint[]) w(lane, n, floor)
  cross join lateral (select q.ctid tid from delivery_queue q
    where q.state = 0 and q.lease = 0 and q.lane = w.lane and q.seq >= w.floor order by q.seq limit w.n for update skip locked) p
), claimed as (
  update delivery_queue q set lease = $3,
      gated = case when q.lane = any($5::bigint[]) then 2 when q.lane = any($4::bigint[]) then 1 else 0 end
   where q.ctid = any(array(select tid from pick))
  returning q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq, q.attempt, q.lost, q.deadline, q.ctid place
)
select c.organization_id, c.delivery_id, c.n, c.fence, c.lane, c.seq, c.attempt, c.lost, c.deadline, c.place, ` + sqlstore.ContentColumns + `
  from claimed c left join lateral (select * from delivery_deliveries d
    where d.organization_id = c.organization_id and d.id = c.delivery_id limit 1) d on true`

// Claim implements sqlstore.Native.
func (d Dialect) Claim(ctx context.Context, tx sqlstore.Execer, shares []sqlstore.Share, lease int64) ([]sqlstore.Claimed, error) {
	lane, n, floor := newArray(len(shares), 20), newArray(len(shares), 5), newArray(len(shares), 10)
	var limited, ordered array
	total := 0
	for _, s := range shares {
		lane.int(s.Lane)
		n.int(int64(s.N))
		floor.int(s.Floor)
		switch s.Gate {
		case sqlstore.Limited:
			limited.int(s.Lane)
		case sqlstore.Ordered:
			ordered.int(s.Lane)
		}
		total += s.N
	}
	all := make([]sqlstore.Claimed, 0, total)
	var c sqlstore.Claimed
	scanner := sqlstore.NewDeliveryScanner(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Lane, &c.Seq, &c.Attempt, &c.Lost,
		sqlstore.Time{T: &c.Deadline}, &c.Place)
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) (err error) {
		if c.Content, err = scanner.Scan(rows); c.Content != nil {
			c.Content.Organization, c.Content.ID = c.Organization, c.Delivery
		}
		all = append(all, c)
		return err
	}, claim, lane.String(), n.String(), lease, limited.String(), ordered.String(), floor.String())
	return all, err
}

const row = `q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq, case when q.lease <> 0 then 1 else q.state end, q.attempt, q.lost, q.cancel, q.gated, q.run_at, q.deadline`

func list(ctx context.Context, tx sqlstore.Execer, query string, args ...any) ([]sqlstore.Claimed, error) {
	var all []sqlstore.Claimed
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var c sqlstore.Claimed
		err := rows.Scan(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Lane, &c.Seq, &c.State, &c.Attempt, &c.Lost,
			&c.Cancel, &c.Gate, sqlstore.Time{T: &c.RunAt}, sqlstore.Time{T: &c.Deadline})
		all = append(all, c)
		return err
	}, query, args...)
	return all, err
}

// keyArrays are the parameters that find rows by key and fence.
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

// end deletes and records in one statement, by the position of each item in the arrays. The rows are locked, so that as many
// are deleted as were found; but one that was changed while it was waited for, such as by a cancellation, is found in its new
// version and deleted in neither. Then the counts differ, and the transaction is run again. What ends dead becomes a dead
// letter.
//
// Placed statements look for a row only where the claim left it, which saves a descent of the index for each. Whether it is the
// item's is looked at there as by key.
const (
	endGiven = `
with i as materialized (
  select * from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::uuid[], $6::smallint[], $7::real[]`
	endFull = `, $9::smallint[], $10::smallint[], $11::smallint[], $12::int[], $13::text[], $14::text[], $15::jsonb[], $16::jsonb[]`

	endNamed     = `) with ordinality i(o, d, n, f, destination, attempt, took`
	endNamedFull = `, state, reason, category, status, code, error, reference, detail`

	endLocated = `, position)
), t as materialized (
  select q.*, i.* from i cross join lateral (select q.ctid tid, q.lane, q.deadline from delivery_queue q
    where q.organization_id = i.o and q.delivery_id = i.d and q.n = i.n and q.fence = i.f`
	endDeleted = ` limit 1 for update) q
), gone as (
  delete from delivery_queue q where q.ctid = any(array(select tid from t)) returning 1
), kept as (
  insert into delivery_attempts (organization_id, delivery_id, n, fence, destination_id, attempt, took, ended_at, state, reason`
	endKept     = `) select o, d, n, f, destination, attempt, took, $8, 3, 0 from t`
	endKeptFull = `, category, status_code, code, error, reference, detail)
  select o, d, n, f, destination, attempt, took, $8, state, reason, category, status, code, error, reference, detail from t
), dead as (
  insert into delivery_dead_letters (organization_id, delivery_id, n, fence, lane, destination_id, reason, died_at, deadline)
  select o, d, n, f, lane, destination, reason, $8, deadline from t where state = 4
  on conflict (organization_id, delivery_id, n) do update
    set fence = excluded.fence, lane = excluded.lane, reason = excluded.reason, died_at = excluded.died_at`
	endCounted = `
)
select t.position, (select count(*) from gone) from t`

	endPlain       = endGiven + endNamed + endLocated + endDeleted + endKept + endCounted
	endDetailed    = endGiven + endFull + endNamed + endNamedFull + endLocated + endDeleted + endKeptFull + endCounted
	endPlaced      = endGiven + `, $9::tid[]` + endNamed + `, place` + endLocated + ` and q.ctid = i.place` + endDeleted + endKept + endCounted
	endPlacedFully = endGiven + endFull + `, $17::tid[]` + endNamed + endNamedFull + `, place` + endLocated + ` and q.ctid = i.place` +
		endDeleted + endKeptFull + endCounted
)

// End implements sqlstore.Native.
func (d Dialect) End(ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.Attempt, applied func(i int)) error {
	var left []*sqlstore.Attempt // that were not where the claim left them
	var leftAt []int
	if slices.ContainsFunc(attempts, func(a *sqlstore.Attempt) bool { return a.Place != "" }) {
		found := make([]bool, len(attempts))
		err := d.end(ctx, tx, now, attempts, true, func(i int) {
			found[i] = true
			applied(i)
		})
		if err != nil {
			return err
		}
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
	return d.end(ctx, tx, now, attempts, false, applied)
}

func (d Dialect) end(ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.Attempt, placed bool, applied func(i int)) error {
	plain := true
	for i := range attempts {
		plain = plain && attempts[i].Plain()
	}
	args := append(attemptArrays(attempts), d.Time(now))
	query := endPlain
	switch {
	case plain && placed:
		query = endPlaced
	case placed:
		query = endPlacedFully
	case !plain:
		query = endDetailed
	}
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

// attemptArrays are the keys, destinations, numbers and durations of attempts.
func attemptArrays(attempts []*sqlstore.Attempt) []any {
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

// detailArrays are what is seldom there.
func detailArrays(attempts []*sqlstore.Attempt) []any {
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

const appendAttempts = `
insert into delivery_attempts (organization_id, delivery_id, n, fence, destination_id, attempt, took, ended_at, state, reason,
    category, status_code, code, error, reference, detail, next_at)
select o, d, n, f, destination, attempt, took, $8, state, reason, category, status, code, error, reference, detail, next_at
  from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::uuid[], $6::smallint[], $7::real[], $9::smallint[],
    $10::smallint[], $11::smallint[], $12::int[], $13::text[], $14::text[], $15::jsonb[], $16::jsonb[], $17::timestamptz[])
    i(o, d, n, f, destination, attempt, took, state, reason, category, status, code, error, reference, detail, next_at)`

// Append implements sqlstore.Native.
func (d Dialect) Append(ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.Attempt) error {
	var next array
	for i := range attempts {
		next.time(attempts[i].NextAt)
	}
	args := append(attemptArrays(attempts), d.Time(now))
	args = append(append(args, detailArrays(attempts)...), next.String())
	_, err := tx.ExecContext(ctx, appendAttempts, args...)
	return err
}

func changed(ctx context.Context, tx sqlstore.Execer, query string, args ...any) ([]sqlstore.Changed, error) {
	var all []sqlstore.Changed
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var c sqlstore.Changed
		err := rows.Scan(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Cancel)
		all = append(all, c)
		return err
	}, query, args...)
	return all, err
}

// reschedule is a join of two small sets, and reaches the queue by ctid.
const reschedule = `
with i as materialized (
  select * from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::smallint[], $6::timestamptz[], $7::smallint[],
    $8::smallint[]) i(o, d, n, f, state, run_at, charge, lost)
), t as materialized (
  select q.tid, i.state, i.run_at, i.charge, i.lost from i
  cross join lateral (select q.ctid tid from delivery_queue q
    where q.organization_id = i.o and q.delivery_id = i.d and q.n = i.n and q.fence = i.f limit 1 for update) q)
update delivery_queue q
   set (state, run_at, attempt, lost) =
       (select t.state, t.run_at, q.attempt + t.charge, q.lost + t.lost from t where t.tid = q.ctid),
       lease = 0, progress = null,
       fence = q.fence + 1, seq = case when q.gated = 2 then q.seq else nextval('delivery_seq') end,
       gated = case when q.gated = 2 then 2 else 0 end
 where q.ctid = any(array(select tid from t))
returning q.organization_id, q.delivery_id, q.n, q.fence - 1, q.cancel`

// Reschedule implements sqlstore.Native.
func (Dialect) Reschedule(ctx context.Context, tx sqlstore.Execer, changes []sqlstore.Change) ([]sqlstore.Changed, error) {
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

const due = `
update delivery_queue q set state = 0, seq = case when q.gated = 2 then q.seq else nextval('delivery_seq') end
 where q.ctid = any(array(
   select ctid from delivery_queue where state = 2 and run_at > $3 and run_at <= $1
   order by run_at limit $2 for update skip locked))`

// Due implements sqlstore.Native.
func (d Dialect) Due(ctx context.Context, tx sqlstore.Execer, after, now time.Time, limit int) (int, error) {
	r, err := tx.ExecContext(ctx, due, d.Time(now), limit, d.Time(after))
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	return int(n), err
}

// GateQuery implements sqlstore.Native.
func (Dialect) GateQuery(nos string) string {
	return `select destination_no, tokens, tokens_at, clock_timestamp()
		from delivery_gates where destination_no in (` + nos + `) order by destination_no for update skip locked`
}

// inFlight does not mention state among its conditions: that would invite the index of what is due.
const inFlight = `
select d.no, q.n from unnest($1::bigint[], $2::text[]) d(no, organization)
 cross join lateral (select count(*) filter (where q.state <> 0 or q.lease <> 0) n from delivery_queue q
   where q.organization_id = d.organization and q.lane & 4294967295 = d.no and q.gated <> 0) q`

// InFlight implements sqlstore.Native.
func (Dialect) InFlight(ctx context.Context, tx sqlstore.Execer, nos map[int64]string) (map[int64]int, error) {
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

const inFlightOf = `
select count(*) filter (where q.lease <> 0) from delivery_queue q where q.organization_id = $1 and q.gated <> 0`

// InFlightOf implements sqlstore.Native.
func (Dialect) InFlightOf(ctx context.Context, tx sqlstore.Execer, organization string) (n int, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&n) }, inFlightOf, organization)
	return n, err
}

// Mark implements sqlstore.Native.
func (Dialect) Mark(ctx context.Context, tx sqlstore.Execer) (mark int64, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&mark) }, `select nextval('delivery_seq')`)
	return mark, err
}

const overdue = `select ` + row + ` from delivery_queue q
 where q.deadline is not null and q.deadline > $3 and q.deadline <= $1 and q.lease = 0 order by q.deadline limit $2 for update skip locked`

// Overdue implements sqlstore.Native.
func (d Dialect) Overdue(ctx context.Context, tx sqlstore.Execer, after, now time.Time, limit int) ([]sqlstore.Claimed, error) {
	return list(ctx, tx, overdue, d.Time(now), limit, d.Time(after))
}

const pendingOfDelivery = `select ` + row + ` from delivery_queue q
 where q.organization_id = $1 and q.delivery_id = $2 order by q.n limit $3 for update`

const pendingOfDestination = `select ` + row + ` from delivery_queue q
 where q.organization_id = $1 and q.lane & 4294967295 = $2 and (q.lease = 0 or q.cancel = 0)
 order by q.delivery_id limit $3 for update`

// Pending implements sqlstore.Native. For a destination it reads all items of its organization: for a deletion.
func (Dialect) Pending(ctx context.Context, tx sqlstore.Execer, organization, delivery string, no int64, limit int) ([]sqlstore.Claimed, error) {
	if delivery != "" {
		return list(ctx, tx, pendingOfDelivery, organization, delivery, limit)
	}
	return list(ctx, tx, pendingOfDestination, organization, no, limit)
}
