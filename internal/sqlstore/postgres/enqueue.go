package postgres

import (
	"context"
	"database/sql"
	"encoding/hex"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// enqueue resolves and inserts in one statement. Nothing in it can fail for what a request holds, so that a host's
// transaction stays usable: a missing destination leaves ok false, a taken key is no row in keys.
const enqueue = `
with req as materialized (
  select * from unnest($3::uuid[], $4::int[], $5::int[], $6::timestamptz[], $7::timestamptz[], $8::text[], $9::bytea[],
      $10::bigint[], $11::smallint[], $12::smallint[], $13::text[], $14::text[], $15::text[], $16::jsonb[], $17::jsonb[],
      $18::jsonb[], $19::text[], $20::text[], $21::bigint[], $22::bytea[], $23::bytea[], $24::uuid[], $25::text[],
      $26::text[]) with ordinality
    as r(id, want, most, not_before, deadline, key, fingerprint, ttl, priority, rank, topic, correlation_id, trace_parent,
      tags, metadata, options, payload_name, payload_type, payload_size, payload_sha256, payload, payload_id,
      payload_source, payload_ref, i)
), dest as materialized (
  select it.i, it.n, d.id, d.no, it.rank, it.not_before
    from unnest($27::int[], $28::smallint[], $29::uuid[], $30::smallint[], $31::timestamptz[])
      it(i, n, id, rank, not_before)
   cross join lateral (select d.id, d.no from delivery_destinations d
     where d.organization_id = $1 and d.id = it.id and d.deleted_at is null limit 1) d
  union all
  select r.i, row_number() over (partition by r.i order by d.no), d.id, d.no, r.rank, r.not_before
    from req r join delivery_destinations d on d.organization_id = $1 and d.is_default and d.deleted_at is null
   where r.want = 0
), ok as materialized (
  select coalesce(bool_and(c.c between 1 and r.most and (r.want = 0 or c.c = r.want)), false) ok
    from req r cross join lateral (select count(*) c from dest where dest.i = r.i) c
), keys as (
  insert into delivery_idempotency as k (organization_id, key, fingerprint, delivery_id, expires_at)
  select $1, r.key, r.fingerprint, r.id, coalesce($2, now()) + r.ttl * interval '1 microsecond'
    from req r, ok where ok.ok and r.key is not null
  on conflict (organization_id, key) do update
    set fingerprint = excluded.fingerprint, delivery_id = excluded.delivery_id, expires_at = excluded.expires_at
    where k.expires_at <= coalesce($2, now())
  returning delivery_id
), fresh as materialized (
  select r.* from req r, ok where ok.ok and (r.key is null or r.id in (select delivery_id from keys))
), inserted as (
  insert into delivery_deliveries (organization_id, id, created_at, deadline, priority, idempotency_key, topic,
      correlation_id, trace_parent, tags, metadata, options, payload_name, payload_type, payload_size, payload_sha256,
      payload, payload_id, payload_source, payload_ref)
  select $1, id, coalesce($2, now()), deadline, priority, key, topic, correlation_id, trace_parent, tags, metadata,
      options, payload_name, payload_type, payload_size, payload_sha256, payload, payload_id, payload_source, payload_ref
    from fresh
), queued as (
  insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state, deadline)
  select $1, f.id, d.n, (d.rank::bigint << 32) | d.no, coalesce(d.not_before, $2, now()),
      case when d.not_before > coalesce($2, now()) then 2 else 0 end, f.deadline
    from fresh f join dest d using (i) order by f.i, d.n
)
select d.i, d.n, d.id, f.i is not null from dest d left join fresh f using (i) order by d.i, d.n`

// Enqueue implements sqlstore.Dialect.
func (Dialect) Enqueue(ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []sqlstore.NewDelivery) ([]sqlstore.Enqueued, error) {
	var id, want, most, notBefore, deadline, key, fingerprint, ttl, priority, rank, topic, correlation, trace, tags,
		metadata, options, name, contentType, size, sha, inline, payloadID, source, ref array
	var i, n, destination, itemRank, itemNotBefore array
	for at, d := range batch {
		id.id(d.ID)
		want.int(int64(len(d.Items)))
		most.int(int64(d.Most))
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
		if d.Payload.ID == "" {
			payloadID.null()
		} else {
			payloadID.id(d.Payload.ID)
		}
		source.opt(d.Payload.Source)
		ref.opt(d.Payload.Ref)
		for k, item := range d.Items {
			i.int(int64(at + 1))
			n.int(int64(k + 1))
			destination.id(item.Destination)
			itemRank.int(sqlstore.Rank(item.Priority))
			itemNotBefore.time(item.NotBefore)
		}
	}
	results := make([]sqlstore.Enqueued, len(batch))
	for k := range results {
		results[k].Taken = true
	}
	args := []any{organization, Dialect{}.Time(now)}
	for _, a := range []*array{&id, &want, &most, &notBefore, &deadline, &key, &fingerprint, &ttl, &priority, &rank, &topic,
		&correlation, &trace, &tags, &metadata, &options, &name, &contentType, &size, &sha, &inline, &payloadID, &source,
		&ref, &i, &n, &destination, &itemRank, &itemNotBefore} {
		args = append(args, a.String())
	}
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
	sqlstore.NoteMissing(batch, results, found)
	return results, nil
}
