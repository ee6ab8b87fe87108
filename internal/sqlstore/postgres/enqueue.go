package postgres

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// enqueue resolves and inserts in one statement. Nothing in it can fail for what a request holds, so that a host's
// transaction stays usable: a missing destination leaves ok false, a taken key is no row in keys. Requests and items are
// never joined, because the planner takes their arrays for short ones and would loop over one for each row of the other;
// so items carry what they need of their request.
const enqueue = `
with req as materialized (
  select * from unnest($3::uuid[], $4::boolean[], $5::timestamptz[], $6::timestamptz[], $7::text[], $8::bytea[],
      $9::bigint[], $10::smallint[], $11::smallint[], $12::text[], $13::text[], $14::text[], $15::jsonb[], $16::jsonb[],
      $17::jsonb[], $18::text[], $19::text[], $20::bigint[], $21::bytea[], $22::bytea[], $23::uuid[], $24::text[],
      $25::text[]) with ordinality
    as r(id, defaults, not_before, deadline, key, fingerprint, ttl, priority, rank, topic, correlation_id, trace_parent,
      tags, metadata, options, payload_name, payload_type, payload_size, payload_sha256, payload, payload_id,
      payload_source, payload_ref, i)
), defaults as materialized (
  select d.id, d.no, row_number() over (order by d.no) n from delivery_destinations d
   where d.organization_id = $1 and d.is_default and d.deleted_at is null and true = any($4::boolean[])
), dest as materialized (
  select it.i, it.n, d.id, d.no, it.rank, it.not_before, it.deadline, it.delivery_id, it.keyed
    from unnest($26::int[], $27::smallint[], $28::uuid[], $29::smallint[], $30::timestamptz[], $31::timestamptz[], $32::uuid[],
      $33::boolean[]) it(i, n, id, rank, not_before, deadline, delivery_id, keyed)
   cross join lateral (select d.id, d.no from delivery_destinations d
     where d.organization_id = $1 and d.id = it.id and d.deleted_at is null limit 1) d
  union all
  select r.i, d.n, d.id, d.no, r.rank, r.not_before, r.deadline, r.id, r.key is not null
    from req r cross join defaults d where r.defaults
), ok as materialized (
  select (select count(*) from dest) = cardinality($26::int[]) + cardinality(array_positions($4::boolean[], true)) * c.defaults
     and (not true = any($4::boolean[]) or c.defaults between 1 and $34::int) ok
    from (select count(*) defaults from defaults) c
), keys as (
  insert into delivery_idempotency as k (organization_id, key, fingerprint, delivery_id, expires_at)
  select $1, r.key, r.fingerprint, r.id, coalesce($2, now()) + r.ttl * interval '1 microsecond'
    from req r, ok where ok.ok and r.key is not null
  on conflict (organization_id, key) do update
    set fingerprint = excluded.fingerprint, delivery_id = excluded.delivery_id, expires_at = excluded.expires_at
    where k.expires_at <= coalesce($2, now())
  returning delivery_id
), inserted as (
  insert into delivery_deliveries (organization_id, id, created_at, deadline, priority, idempotency_key, topic,
      correlation_id, trace_parent, tags, metadata, options, payload_name, payload_type, payload_size, payload_sha256,
      payload, payload_id, payload_source, payload_ref)
  select $1, id, coalesce($2, now()), deadline, priority, key, topic, correlation_id, trace_parent, tags, metadata,
      options, payload_name, payload_type, payload_size, payload_sha256, payload, payload_id, payload_source, payload_ref
    from req, ok where ok.ok and (key is null or id in (select delivery_id from keys))
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state, deadline)
  select $1, d.delivery_id, d.n, (d.rank::bigint << 32) | d.no, coalesce(d.not_before, $2, now()),
      case when d.not_before > coalesce($2, now()) then 2 else 0 end, d.deadline
    from dest d, ok where ok.ok and (not d.keyed or d.delivery_id in (select delivery_id from keys))
   order by d.i, d.n -- in which they take their numbers
)
select d.i, d.n, d.id, not d.keyed or d.delivery_id in (select delivery_id from keys) from dest d`

// Enqueue implements sqlstore.Dialect.
func (Dialect) Enqueue(ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []sqlstore.NewDelivery) ([]sqlstore.Enqueued, error) {
	var id, defaults, notBefore, deadline, key, fingerprint, ttl, priority, rank, topic, correlation, trace, tags,
		metadata, options, name, contentType, size, sha, inline, payloadID, source, ref array
	var i, n, destination, itemRank, itemNotBefore, itemDeadline, delivery, keyed array
	most := 0
	for at, d := range batch {
		id.id(d.ID)
		defaults.bool(len(d.Items) == 0)
		notBefore.time(d.NotBefore)
		deadline.time(d.Deadline)
		key.opt(d.IdempotencyKey)
		fingerprint.bytes(d.Fingerprint)
		ttl.int(d.KeyExpires.Microseconds())
		priority.int(int64(d.Priority))
		rank.int(sqlstore.Rank(d.Priority))
		topic.opt(d.Topic)
		correlation.opt(d.CorrelationID)
		trace.opt(d.TraceParent)
		tags.opt(string(sqlstore.Encode(d.Tags)))
		metadata.opt(string(sqlstore.Encode(d.Metadata)))
		options.opt(string(sqlstore.Encode(d.Options)))
		name.opt(d.Payload.Name)
		contentType.text(d.Payload.ContentType)
		size.int(d.Payload.Size)
		hash, err := hex.DecodeString(d.Payload.SHA256)
		if err != nil {
			return nil, err
		}
		sha.bytes(hash)
		inline.bytes(d.Payload.Inline)
		payloadID.id(d.Payload.ID)
		source.opt(d.Payload.Source)
		ref.opt(d.Payload.Ref)
		most = d.Most
		for k, item := range d.Items {
			i.int(int64(at + 1))
			n.int(int64(k + 1))
			destination.id(item.Destination)
			itemRank.int(sqlstore.Rank(item.Priority))
			itemNotBefore.time(item.NotBefore)
			itemDeadline.time(d.Deadline)
			delivery.id(d.ID)
			keyed.bool(d.IdempotencyKey != "")
		}
	}
	results := make([]sqlstore.Enqueued, len(batch))
	for k := range results {
		results[k].Taken = true
	}
	args := []any{organization, Dialect{}.Time(now)}
	for _, a := range []*array{&id, &defaults, &notBefore, &deadline, &key, &fingerprint, &ttl, &priority, &rank, &topic,
		&correlation, &trace, &tags, &metadata, &options, &name, &contentType, &size, &sha, &inline, &payloadID, &source,
		&ref, &i, &n, &destination, &itemRank, &itemNotBefore, &itemDeadline, &delivery, &keyed} {
		args = append(args, a.String())
	}
	args = append(args, most)
	found := make([]map[string]bool, len(batch))
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var i int
		var item sqlstore.EnqueuedItem
		var fresh bool
		if err := rows.Scan(&i, &item.N, &item.Destination, &fresh); err != nil {
			return err
		}
		r := &results[i-1]
		r.Items = append(r.Items, item)
		r.Taken = r.Taken && !fresh
		if found[i-1] == nil {
			found[i-1] = map[string]bool{}
		}
		found[i-1][item.Destination] = true
		return nil
	}, enqueue, args...)
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		slices.SortFunc(r.Items, func(a, b sqlstore.EnqueuedItem) int { return cmp.Compare(a.N, b.N) })
	}
	sqlstore.NoteMissing(batch, results, found)
	return results, nil
}
