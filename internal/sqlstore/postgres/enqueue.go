package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

const mostResolves = 10

// Enqueue implements sqlstore.Native.
func (d Dialect) Enqueue(ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []sqlstore.NewDelivery) ([]sqlstore.Enqueued, error) {
	for range mostResolves {
		resolved, err := sqlstore.Resolve(ctx, d, tx, organization, now, batch)
		if err != nil {
			return nil, err
		}
		results, err := insert(ctx, tx, organization, now, resolved)
		if err != nil || !overtaken(batch, results) {
			return results, err
		}
	}
	return nil, errors.New("the organization's destinations are being deleted all the time while a delivery looks for them")
}

// overtaken reports whether a destination is missing that no delivery names: it was deleted after it was chosen.
func overtaken(batch []sqlstore.NewDelivery, results []sqlstore.Enqueued) bool {
	for i, r := range results {
		for _, id := range r.Missing {
			if id != "" && !slices.ContainsFunc(batch[i].Items, func(item sqlstore.NewItem) bool { return item.Destination == id }) {
				return true
			}
		}
	}
	return false
}

// insert inserts what is resolved.
func insert(ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []sqlstore.NewDelivery) ([]sqlstore.Enqueued, error) {
	query, args, err := enqueue(organization, now, batch)
	if err != nil {
		return nil, err
	}
	results := make([]sqlstore.Enqueued, len(batch))
	found := make([]map[string]bool, len(batch))
	taken := make([]bool, len(batch))
	complete := possible(batch)
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var i, n int
		var there, fresh bool
		if err := rows.Scan(&i, &n, &there, &fresh); err != nil {
			return err
		}
		item := sqlstore.EnqueuedItem{N: n, Destination: batch[i-1].Items[n-1].Destination}
		complete = complete && there
		if there {
			if found[i-1] == nil {
				found[i-1] = map[string]bool{}
			}
			found[i-1][item.Destination] = true
			results[i-1].Items = append(results[i-1].Items, item)
		}
		taken[i-1] = taken[i-1] || !fresh
		return nil
	}, query, args...)
	if err != nil {
		return nil, err
	}
	if !complete {
		sqlstore.NoteMissing(batch, results, found)
		return results, nil
	}
	for i := range results {
		results[i].Items, results[i].Taken = wanted(&batch[i]), taken[i]
	}
	return results, nil
}

// possible reports whether each delivery has destinations, and not too many.
func possible(batch []sqlstore.NewDelivery) bool {
	return !slices.ContainsFunc(batch, func(d sqlstore.NewDelivery) bool { return len(d.Items) == 0 || len(d.Items) > d.Most })
}

// wanted are the items that a delivery is to have.
func wanted(d *sqlstore.NewDelivery) []sqlstore.EnqueuedItem {
	items := make([]sqlstore.EnqueuedItem, len(d.Items))
	for k, item := range d.Items {
		items[k] = sqlstore.EnqueuedItem{N: k + 1, Destination: item.Destination, Fallback: d.Fallback}
	}
	return items
}

// enqueue is a statement that finds destinations and inserts. Nothing in it can fail for what a request holds, so that
// a host's transaction stays usable: with a destination missing it inserts nothing, and a taken key is no row in keys. It
// returns rows for what the caller cannot know, or for all items if something is missing. Requests and items are never
// joined, because the planner takes their arrays for short ones and would loop over one for each row of the other; so
// items carry what they need of their request. Nor are destinations: each is looked up once, and items say which it is.
//
// It mentions only what the batch needs. Drivers have it parsed and planned in each transaction, and with all columns
// and keys that takes longer than to insert a single delivery.
func enqueue(organization string, now time.Time, batch []sqlstore.NewDelivery) (query string, args []any, err error) {
	r, err := newRequests(batch)
	if err != nil {
		return "", nil, err
	}
	s := &statement{args: make([]any, 0, 24)}
	org, at := s.arg(organization), "coalesce("+s.arg(Dialect{}.Time(now))+"::timestamptz, now())"
	var contents string
	if !r.hashAt.empty() {
		contents = s.arg(r.contents) + "::bytea"
	}
	given := func(yes bool, text string) string {
		if yes {
			return text
		}
		return ""
	}
	keyed, timed := !r.key.empty(), !r.itemNotBefore.empty() || !r.itemDeadline.empty()

	columns := present([]column{
		{"id", "uuid", &r.id}, {"deadline", "timestamptz", &r.deadline}, {"priority", "smallint", &r.priority},
		{"idempotency_key", "text", &r.key}, {"topic", "text", &r.topic}, {"correlation_id", "text", &r.correlation},
		{"trace_parent", "text", &r.trace}, {"tags", "jsonb", &r.tags}, {"metadata", "jsonb", &r.metadata},
		{"options", "jsonb", &r.options}, {"payload_name", "text", &r.name}, {"payload_type", "text", &r.contentType},
		{"payload_size", "bigint", &r.size}, {"payload_id", "uuid", &r.payloadID}, {"payload_source", "text", &r.source},
		{"payload_ref", "text", &r.ref}, {"fallback", "boolean", &r.fallback},
	})
	inserted := names(columns)
	columns = append(columns, present([]column{
		{"hash_at", "int", &r.hashAt}, {"inline", "boolean", &r.inline}, {"fingerprint", "bytea", &r.fingerprint}, {"ttl", "bigint", &r.ttl},
	})...)
	s.text("with req as (select * from ", s.unnest(columns), " r(", names(columns), "))")

	items := []column{
		{"i", "int", &r.i}, {"n", "smallint", &r.n}, {"at", "int", &r.destinationAt}, {"rank", "smallint", &r.itemRank},
		{"delivery_id", "uuid", &r.delivery},
	}
	if timed {
		items = append(items, column{"not_before", "timestamptz", &r.itemNotBefore}, column{"deadline", "timestamptz", &r.itemDeadline})
	}
	if keyed {
		items = append(items, column{"keyed", "boolean", &r.keyed})
	}
	s.text(`, known as materialized (select array(select (select d.no from delivery_destinations d
     where d.organization_id = `, org, ` and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest(`, s.arg(r.destination.String()), `::uuid[]) with ordinality u(id, at) order by u.at) nos), dest as materialized (
  select it.*, (select nos from known)[it.at] no from `, s.unnest(items), ` it(`, names(items), `)), ok as materialized (
  select `, given(!possible(batch), `false and `), `not exists (select from dest where no is null) ok)`)
	fresh := ""
	if keyed {
		s.text(`, keys as (
  insert into delivery_idempotency as k (organization_id, key, fingerprint, delivery_id, expires_at)
  select `, org, `, idempotency_key, fingerprint, id, `, at, ` + ttl * interval '1 microsecond'
    from req where (select ok from ok) and idempotency_key is not null order by idempotency_key
  on conflict (organization_id, key) do update
    set fingerprint = excluded.fingerprint, delivery_id = excluded.delivery_id, expires_at = excluded.expires_at
    where k.expires_at <= `, at, `
  returning delivery_id)`)
		fresh = `(d.keyed is null or d.delivery_id in (select delivery_id from keys))`
	}
	s.text(`, inserted as (
  insert into delivery_deliveries (organization_id, created_at, `, inserted, given(!r.hashAt.empty(), `, payload_sha256`),
		given(!r.inline.empty(), `, payload`), `)
  select `, org, `, `, at, `, `, inserted, given(!r.hashAt.empty(), `, substring(`+contents+` from hash_at for 32)`),
		given(!r.inline.empty(), `, case when inline then substring(`+contents+` from hash_at + 32 for payload_size::int) end`), `
    from req where (select ok from ok)`, given(keyed, ` and (idempotency_key is null or id in (select delivery_id from keys))`), `
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state`, given(timed, `, deadline`), `)
  select `, org, `, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, `)
	if timed {
		s.text(`greatest(d.not_before, `, at, `), case when d.not_before > `, at, ` then 2 else 0 end, d.deadline`)
	} else {
		s.text(at, `, 0`)
	}
	s.text(` from dest d where (select ok from ok)`, given(keyed, ` and `+fresh), `
   order by d.i, d.n -- in which they take their numbers
)
select d.i, d.n, d.no is not null, `, cmp.Or(fresh, `true`), ` from dest d where not (select ok from ok)`,
		given(keyed, ` or d.keyed`))
	return s.String(), s.args, nil
}

// statement is built with its parameters.
type statement struct {
	strings.Builder
	args []any
}

func (s *statement) text(parts ...string) {
	for _, part := range parts {
		s.WriteString(part)
	}
}

// arg adds a parameter and returns its placeholder.
func (s *statement) arg(v any) string {
	s.args = append(s.args, v)
	return "$" + strconv.Itoa(len(s.args))
}

// column is a column of rows that are given as arrays.
type column struct {
	name, kind string
	values     *array
}

// present leaves out the columns that hold nothing but nulls.
func present(columns []column) []column {
	return slices.DeleteFunc(columns, func(c column) bool { return c.values.empty() })
}

func names(columns []column) string {
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(c.name)
	}
	return b.String()
}

func (s *statement) unnest(columns []column) string {
	var b strings.Builder
	for i, c := range columns {
		b.WriteString([]string{"unnest(", ", "}[min(i, 1)])
		b.WriteString(s.arg(c.values.String()))
		b.WriteString("::" + c.kind + "[]")
	}
	return b.String() + ")"
}

// requests are deliveries to insert, as columns.
type requests struct {
	id, deadline, key, fingerprint, ttl, priority, topic, correlation, trace, tags, metadata, options array
	name, contentType, size, payloadID, source, ref                                                   array

	fallback array // true for those that go to one
	hashAt   array // where in contents the payload's hash is, from 1
	inline   array // true where the payload follows its hash
	contents []byte

	destination  array // those that items go to, each once
	destinations map[string]int

	// Of their items.
	i, n, destinationAt, itemRank, itemNotBefore, itemDeadline, delivery, keyed array
}

func newRequests(batch []sqlstore.NewDelivery) (*requests, error) {
	size, items := 0, 0
	for i := range batch {
		size += sha256.Size + len(batch[i].Payload.Inline)
		items += len(batch[i].Items)
	}
	n := len(batch)
	r := &requests{
		id: newArray(n, 36), priority: newArray(n, 2), contentType: newArray(n, 26), size: newArray(n, 6), hashAt: newArray(n, 7),
		inline: newArray(n, 5), contents: make([]byte, 0, size),
		destinations: map[string]int{},
		i:            newArray(items, 5), n: newArray(items, 2), destinationAt: newArray(items, 3), itemRank: newArray(items, 2), delivery: newArray(items, 36),
	}
	for i := range batch {
		if err := r.add(i+1, &batch[i]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *requests) add(i int, d *sqlstore.NewDelivery) error {
	r.id.id(d.ID)
	r.deadline.time(d.Deadline)
	r.key.opt(d.IdempotencyKey)
	if d.IdempotencyKey == "" {
		r.fingerprint.null()
		r.ttl.null()
	} else {
		r.fingerprint.bytes(d.Fingerprint)
		r.ttl.int(d.KeyExpires.Microseconds())
	}
	r.priority.int(int64(d.Priority))
	r.topic.opt(d.Topic)
	r.correlation.opt(d.CorrelationID)
	r.trace.opt(d.TraceParent)
	r.tags.opt(string(sqlstore.Encode(d.Tags)))
	r.metadata.opt(string(sqlstore.Encode(d.Metadata)))
	r.options.opt(string(sqlstore.Encode(d.Options)))
	r.name.opt(d.Payload.Name)
	r.contentType.text(d.Payload.ContentType)
	r.size.int(d.Payload.Size)
	r.payloadID.id(d.Payload.ID)
	r.source.opt(d.Payload.Source)
	r.ref.opt(d.Payload.Ref)
	if d.Payload.SHA256 == "" {
		r.hashAt.null()
	} else {
		r.hashAt.int(int64(len(r.contents) + 1))
	}
	var err error
	if r.contents, err = hex.AppendDecode(r.contents, []byte(d.Payload.SHA256)); err != nil {
		return err
	}
	r.inline.flag(d.Payload.Inline != nil)
	r.contents = append(r.contents, d.Payload.Inline...)
	r.fallback.flag(d.Fallback)
	for k, item := range d.Items {
		r.i.int(int64(i))
		r.n.int(int64(k + 1))
		at, seen := r.destinations[item.Destination]
		if !seen {
			at = len(r.destinations) + 1
			r.destinations[item.Destination] = at
			r.destination.id(item.Destination)
		}
		r.destinationAt.int(int64(at))
		r.itemRank.int(sqlstore.Rank(item.Priority))
		r.itemNotBefore.time(item.NotBefore)
		r.itemDeadline.time(d.Deadline)
		r.delivery.id(d.ID)
		r.keyed.flag(d.IdempotencyKey != "")
	}
	return nil
}
