package postgres

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

const ranks = `
with recursive r(rank) as (
  select (select q.lane >> 32 from delivery_queue q where q.state = 0 order by q.lane, q.seq limit 1)
  union all
  select (select q.lane >> 32 from delivery_queue q where q.state = 0 and q.lane >= (r.rank + 1) << 32
           order by q.lane, q.seq limit 1)
    from r where r.rank is not null)
select rank from r where rank is not null`

// Ranks implements sqlstore.Dialect.
func (Dialect) Ranks(ctx context.Context, tx sqlstore.Execer) ([]int64, error) {
	return lanes(ctx, tx, ranks)
}

const walk = `
with recursive walk(lane, n) as (
  select $1::bigint, 0
  union all
  select x.lane, w.n + 1 from walk w cross join lateral (
    select (select q.lane from delivery_queue q where q.state = 0 and q.lane > w.lane and q.lane <= $2::bigint
             order by q.lane, q.seq limit 1) offset 0) x(lane) -- offset 0, or it is evaluated twice
  where x.lane is not null and w.n < $3::int)
select lane from walk where n > 0`

// Walk implements sqlstore.Dialect.
func (Dialect) Walk(ctx context.Context, tx sqlstore.Execer, after, last int64, limit int) ([]int64, error) {
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

const claimed = `q.organization_id, q.delivery_id, q.n, q.fence, q.lane, q.seq, q.state, q.attempt, q.lost, q.cancel, q.run_at, q.deadline`

const claim = `
with pick as materialized (
  select p.tid from unnest($1::bigint[], $2::int[]) w(lane, n)
  cross join lateral (select q.ctid tid from delivery_queue q
    where q.state = 0 and q.lane = w.lane order by q.seq limit w.n for update skip locked) p)
update delivery_queue q set state = 1, run_at = $3
 where q.ctid = any(array(select tid from pick))
returning ` + claimed

// Claim implements sqlstore.Dialect.
func (d Dialect) Claim(ctx context.Context, tx sqlstore.Execer, shares []sqlstore.Share, until time.Time) ([]sqlstore.Claimed, error) {
	var lane, n array
	for _, s := range shares {
		lane.int(s.Lane)
		n.int(int64(s.N))
	}
	return claims(ctx, tx, claim, lane.String(), n.String(), d.Time(until))
}

func claims(ctx context.Context, tx sqlstore.Execer, query string, args ...any) ([]sqlstore.Claimed, error) {
	var all []sqlstore.Claimed
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var c sqlstore.Claimed
		err := rows.Scan(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Lane, &c.Seq, &c.State, &c.Attempt, &c.Lost,
			&c.Cancel, sqlstore.Time{T: &c.RunAt}, sqlstore.Time{T: &c.Deadline})
		all = append(all, c)
		return err
	}, query, args...)
	return all, err
}

const load = `
select i.at, ` + sqlstore.DeliveryColumns + `
  from unnest($1::text[], $2::uuid[]) with ordinality i(o, id, at)
 cross join lateral (select * from delivery_deliveries d where d.organization_id = i.o and d.id = i.id limit 1) d`

// Load implements sqlstore.Dialect.
func (Dialect) Load(ctx context.Context, tx sqlstore.Execer, keys []sqlstore.Key) ([]*sqlstore.Delivery, error) {
	var o, id array
	for _, k := range keys {
		o.text(k.Organization)
		id.id(k.Delivery)
	}
	all := make([]*sqlstore.Delivery, len(keys))
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var at int
		d, err := sqlstore.ScanDelivery(rows, &at)
		if err == nil {
			all[at-1] = d
		}
		return err
	}, load, o.String(), id.String())
	return all, err
}

// located finds rows by key and fence. It does not mention state, which would invite a partial index.
const located = `
with t as materialized (
  select q.tid from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[]) i(o, d, n, f)
  cross join lateral (select q.ctid tid from delivery_queue q
    where q.organization_id = i.o and q.delivery_id = i.d and q.n = i.n and q.fence = i.f limit 1 for update) q)`

func located4(keys []sqlstore.Key) []any {
	var o, d, n, f array
	for _, k := range keys {
		o.text(k.Organization)
		d.id(k.Delivery)
		n.int(int64(k.N))
		f.int(int64(k.Fence))
	}
	return []any{o.String(), d.String(), n.String(), f.String()}
}

const remove = located + `
delete from delivery_queue q where q.ctid = any(array(select tid from t))
returning q.organization_id, q.delivery_id, q.n, q.fence, q.cancel`

// Delete implements sqlstore.Dialect.
func (Dialect) Delete(ctx context.Context, tx sqlstore.Execer, keys []sqlstore.Key) ([]sqlstore.Key, error) {
	rows, err := changed(ctx, tx, remove, located4(keys)...)
	deleted := make([]sqlstore.Key, len(rows))
	for i, r := range rows {
		deleted[i] = r.Key
	}
	return deleted, err
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
       fence = q.fence + 1, seq = nextval('delivery_seq'), gated = false
 where q.ctid = any(array(select tid from t))
returning q.organization_id, q.delivery_id, q.n, q.fence - 1, q.cancel`

// Reschedule implements sqlstore.Dialect.
func (Dialect) Reschedule(ctx context.Context, tx sqlstore.Execer, changes []sqlstore.Change) ([]sqlstore.Changed, error) {
	keys := make([]sqlstore.Key, len(changes))
	var state, runAt, charge, lost array
	for i, c := range changes {
		keys[i] = c.Key
		state.int(int64(c.State))
		runAt.time(c.RunAt)
		charge.int(flag(c.Charge))
		lost.int(flag(c.Lost))
	}
	args := append(located4(keys), state.String(), runAt.String(), charge.String(), lost.String())
	return changed(ctx, tx, reschedule, args...)
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

const insertAttempts = `
insert into delivery_attempts (organization_id, delivery_id, n, fence, destination_id, attempt, state, reason, category,
    status_code, code, error, started_at, ended_at, next_at, reference, detail)
select * from unnest($1::text[], $2::uuid[], $3::smallint[], $4::int[], $5::uuid[], $6::smallint[], $7::smallint[],
    $8::smallint[], $9::smallint[], $10::int[], $11::text[], $12::text[], $13::timestamptz[], $14::timestamptz[],
    $15::timestamptz[], $16::jsonb[], $17::jsonb[])
on conflict do nothing`

// InsertAttempts implements sqlstore.Dialect.
func (Dialect) InsertAttempts(ctx context.Context, tx sqlstore.Execer, attempts []sqlstore.Attempt) error {
	keys := make([]sqlstore.Key, len(attempts))
	var destination, number, state, reason, category, status, code, text, started, ended, next, reference, detail array
	for i, a := range attempts {
		keys[i] = a.Key
		destination.id(a.Destination)
		number.int(int64(a.Number))
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
		started.time(a.StartedAt)
		ended.time(a.EndedAt)
		next.time(a.NextAt)
		reference.opt(string(sqlstore.Encode(a.Reference)))
		detail.opt(string(sqlstore.Encode(a.Detail)))
	}
	args := located4(keys)
	for _, a := range []*array{&destination, &number, &state, &reason, &category, &status, &code, &text, &started, &ended,
		&next, &reference, &detail} {
		args = append(args, a.String())
	}
	_, err := tx.ExecContext(ctx, insertAttempts, args...)
	return err
}

const extend = located + `
update delivery_queue q set run_at = $5 where q.ctid = any(array(select tid from t))
returning q.organization_id, q.delivery_id, q.n, q.fence, q.cancel`

// Extend implements sqlstore.Dialect.
func (d Dialect) Extend(ctx context.Context, tx sqlstore.Execer, keys []sqlstore.Key, until time.Time) ([]sqlstore.Changed, error) {
	return changed(ctx, tx, extend, append(located4(keys), d.Time(until))...)
}

const due = `
update delivery_queue q set state = 0, gated = false, seq = nextval('delivery_seq')
 where q.ctid = any(array(
   select ctid from delivery_queue where state <> 0 and run_at <= $1 and state = 2
   order by run_at limit $2 for update skip locked))`

// Due implements sqlstore.Dialect.
func (d Dialect) Due(ctx context.Context, tx sqlstore.Execer, now time.Time, limit int) (int, error) {
	r, err := tx.ExecContext(ctx, due, d.Time(now), limit)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	return int(n), err
}

const expired = `select ` + claimed + ` from delivery_queue q
 where q.state <> 0 and q.run_at <= $1 and q.state = 1 order by q.run_at limit $2 for update skip locked`

// Expired implements sqlstore.Dialect.
func (d Dialect) Expired(ctx context.Context, tx sqlstore.Execer, now time.Time, limit int) ([]sqlstore.Claimed, error) {
	return claims(ctx, tx, expired, d.Time(now), limit)
}

const overdue = `select ` + claimed + ` from delivery_queue q
 where q.deadline is not null and q.deadline <= $1 and q.state <> 1 order by q.deadline limit $2 for update skip locked`

// Overdue implements sqlstore.Dialect.
func (d Dialect) Overdue(ctx context.Context, tx sqlstore.Execer, now time.Time, limit int) ([]sqlstore.Claimed, error) {
	return claims(ctx, tx, overdue, d.Time(now), limit)
}

const pendingOfDelivery = `select ` + claimed + ` from delivery_queue q
 where q.organization_id = $1 and q.delivery_id = $2 order by q.n limit $3 for update`

const pendingOfDestination = `select ` + claimed + ` from delivery_queue q
 where q.organization_id = $1 and q.lane & 4294967295 = $2 and not (q.state = 1 and q.cancel <> 0)
 order by q.delivery_id limit $3 for update`

// Pending implements sqlstore.Dialect. For a destination it reads all items of its organization: for a deletion.
func (Dialect) Pending(ctx context.Context, tx sqlstore.Execer, organization, delivery string, no int64, limit int) ([]sqlstore.Claimed, error) {
	if delivery != "" {
		return claims(ctx, tx, pendingOfDelivery, organization, delivery, limit)
	}
	return claims(ctx, tx, pendingOfDestination, organization, no, limit)
}
