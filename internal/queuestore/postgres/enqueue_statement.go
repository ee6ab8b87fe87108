package postgres

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
)

// enqueue returns the statement that finds the destinations of a batch and inserts its deliveries,
// items and keys. testdata/enqueue.sql shows its shapes.
//
// Nothing in it can fail because of what a request holds, so a host's transaction stays usable: if
// a destination is missing it inserts nothing, and a key that is taken is missing from keys. It
// returns a row for each item whose outcome the caller cannot know, or for all items if something
// is missing.
//
// It never joins requests, items and destinations. The planner takes their arrays to be short, and
// would loop over one of them for each row of another. So items carry what they need of their
// request, and each destination is looked up once and known by its place.
//
// It mentions only what the batch needs. Drivers have it parsed and planned in each transaction;
// with all columns and keys that takes longer than the insertion of a single delivery.
func enqueue(organization string, now time.Time, batch []queuestore.NewDelivery) (query string, args []any, err error) {
	r, err := newRequests(batch)
	if err != nil {
		return "", nil, err
	}
	s := &enqueueStatement{
		statement: statement{args: make([]any, 0, 24)},
		requests:  r,
		keyed:     !r.key.empty(),
		timed:     !r.itemNotBefore.empty() || !r.itemDeadline.empty(),
	}
	s.organization = s.arg(organization)
	s.now = "coalesce(" + s.arg(Native{}.Time(now)) + "::timestamptz, now())"
	inserted := s.request()
	s.resolve(possible(batch))
	if s.keyed {
		s.takeKeys()
	}
	s.insertDeliveries(inserted)
	s.insertItems()
	s.report()
	return s.String(), s.args, nil
}

// enqueueStatement is the statement that enqueues, as it is built.
type enqueueStatement struct {
	statement
	*requests
	organization, now string // parameters
	hashed            string // the parameter of contents, "" if no payload has a hash
	keyed             bool   // some delivery has an idempotency key
	timed             bool   // some item has a time or a deadline
}

// fresh is the condition that the key of item d was free.
const fresh = `(d.keyed is null or d.delivery_id in (select delivery_id from keys))`

// request begins the statement with the requests, and returns those of their columns that are
// stored as they are.
func (s *enqueueStatement) request() (inserted string) {
	if !s.hashAt.empty() {
		s.hashed = s.arg(s.contents) + "::bytea"
	}
	columns := present([]column{
		{"id", "uuid", &s.id}, {"deadline", "timestamptz", &s.deadline}, {"priority", "smallint", &s.priority},
		{"idempotency_key", "text", &s.key}, {"topic", "text", &s.topic}, {"correlation_id", "text", &s.correlation},
		{"trace_parent", "text", &s.trace}, {"tags", "jsonb", &s.tags}, {"metadata", "jsonb", &s.metadata},
		{"options", "jsonb", &s.options}, {"payload_name", "text", &s.name}, {"payload_type", "text", &s.contentType},
		{"payload_size", "bigint", &s.size}, {"payload_id", "uuid", &s.payloadID},
		{"payload_source", "text", &s.source},
		{"payload_ref", "text", &s.ref}, {"fallback", "boolean", &s.fallback},
	})
	inserted = names(columns)
	columns = append(columns, present([]column{
		{"hash_at", "int", &s.hashAt}, {"inline", "boolean", &s.inline},
		{"fingerprint", "bytea", &s.fingerprint}, {"ttl", "bigint", &s.ttl},
	})...)
	s.text(`with req as (
  select * from `, s.unnest(columns), `
    r(`, names(columns), `)
)`)
	return inserted
}

// resolve finds the numbers of the items' destinations. Unless the batch is possible, and none is
// missing, it has the parts that follow insert nothing.
func (s *enqueueStatement) resolve(possible bool) {
	items := []column{
		{"i", "int", &s.i}, {"n", "smallint", &s.n}, {"at", "int", &s.destinationAt}, {"rank", "smallint", &s.itemRank},
		{"delivery_id", "uuid", &s.delivery},
	}
	if s.timed {
		items = append(items,
			column{"not_before", "timestamptz", &s.itemNotBefore}, column{"deadline", "timestamptz", &s.itemDeadline})
	}
	if s.keyed {
		items = append(items, column{"keyed", "boolean", &s.itemKeyed})
	}
	s.text(`, known as materialized (
  select array(select (select d.no from delivery_destinations d
      where d.organization_id = `, s.organization, ` and d.id = u.id and d.deleted_at is null and d.draining_at is null)
    from unnest(`, s.arg(s.destination.String()), `::uuid[]) with ordinality u(id, at) order by u.at) nos
), dest as materialized (
  select it.*, (select nos from known)[it.at] no
    from `, s.unnest(items), `
    it(`, names(items), `)
), ok as materialized (
  select `)
	if !possible {
		s.text(`false and `)
	}
	s.text(`not exists (select from dest where no is null) ok
)`)
}

// takeKeys inserts the idempotency keys that are free or expired. One that is taken is not in keys.
func (s *enqueueStatement) takeKeys() {
	s.text(`, keys as (
  insert into delivery_idempotency as k (organization_id, key, fingerprint, delivery_id, expires_at)
  select `, s.organization, `, idempotency_key, fingerprint, id, `, s.now, ` + ttl * interval '1 microsecond'
    from req where (select ok from ok) and idempotency_key is not null order by idempotency_key
  on conflict (organization_id, key) do update
    set fingerprint = excluded.fingerprint, delivery_id = excluded.delivery_id, expires_at = excluded.expires_at
    where k.expires_at <= `, s.now, `
  returning delivery_id
)`)
}

// insertDeliveries inserts the requests whose key was free. columns are stored as they are; hashes
// and inline payloads are parts of one parameter.
func (s *enqueueStatement) insertDeliveries(columns string) {
	values := columns
	if s.hashed != "" {
		columns += `, payload_sha256`
		values += `,
      substring(` + s.hashed + ` from hash_at for 32)`
	}
	if !s.inline.empty() {
		columns += `, payload`
		values += `,
      case when inline then substring(` + s.hashed + ` from hash_at + 32 for payload_size::int) end`
	}
	s.text(`, inserted as (
  insert into delivery_deliveries
    (organization_id, created_at, `, columns, `)
  select `, s.organization, `, `, s.now, `, `, values, `
    from req where (select ok from ok)`)
	if s.keyed {
		s.text(`
      and (idempotency_key is null or id in (select delivery_id from keys))`)
	}
}

// insertItems inserts items in the order in which they take their numbers.
func (s *enqueueStatement) insertItems() {
	columns, values := `run_at, state`, s.now+`, 0`
	if s.timed {
		columns = `run_at, state, deadline`
		values = `greatest(d.not_before, ` + s.now + `),
      case when d.not_before > ` + s.now + ` then 2 else 0 end, d.deadline`
	}
	s.text(`
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, `, columns, `)
  select `, s.organization, `, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, `, values, `
    from dest d where (select ok from ok)`)
	if s.keyed {
		s.text(`
      and `, fresh)
	}
	s.text(`
   order by d.i, d.n
)`)
}

// report ends the statement with the request and the number of items, whether the destination was
// found, and whether the key was free.
func (s *enqueueStatement) report() {
	if s.keyed {
		s.text(`
select d.i, d.n, d.no is not null, `, fresh, `
  from dest d where not (select ok from ok) or d.keyed`)
		return
	}
	s.text(`
select d.i, d.n, d.no is not null, true
  from dest d where not (select ok from ok)`)
}

// statement is a statement as it is built, with its parameters.
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

// column is a column of rows that are given as arrays, one for each column.
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
		b.WriteString(separator(i))
		b.WriteString(c.name)
	}
	return b.String()
}

// separator precedes element i of a list. It breaks long lists into lines, for people who read the
// statement.
func separator(i int) string {
	switch {
	case i == 0:
		return ""
	case i%8 == 0:
		return ",\n      "
	}
	return ", "
}

func (s *statement) unnest(columns []column) string {
	var b strings.Builder
	for i, c := range columns {
		b.WriteString(cmp.Or(separator(i), "unnest("))
		b.WriteString(s.arg(c.values.String()))
		b.WriteString("::" + c.kind + "[]")
	}
	return b.String() + ")"
}
