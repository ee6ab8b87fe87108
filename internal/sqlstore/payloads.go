package sqlstore

import (
	"context"
	"database/sql"
	"encoding/hex"
	"time"

	"github.com/deliverykit/delivery/payload"
)

// BeginPayload makes room for a payload that is spooled. It stays incomplete until CompletePayload.
func (tx *Tx) BeginPayload(ctx context.Context, organization, id string, info payload.Info) error {
	now := tx.Now
	if now.IsZero() { // a host's transaction, whose time is the database's: close enough for a staging time
		now = time.Now()
	}
	_, err := tx.Exec(ctx, `insert into delivery_payloads (organization_id, id, created_at, size, name, content_type)
		values ($1, $2, $3, 0, $4, $5) on conflict do nothing`, organization, id, tx.s.Time(now), info.Name, info.ContentType)
	return err
}

// PutChunk stores the i-th chunk of a payload.
func (tx *Tx) PutChunk(ctx context.Context, organization, id string, i int, data []byte) error {
	_, err := tx.Exec(ctx, `insert into delivery_payload_chunks (organization_id, payload_id, i, data)
		values ($1, $2, $3, $4) on conflict do nothing`, organization, id, i, data)
	return err
}

// CompletePayload records the size and hash of a payload that is spooled.
func (tx *Tx) CompletePayload(ctx context.Context, organization, id string, info payload.Info) error {
	sha, err := hex.DecodeString(info.SHA256)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update delivery_payloads set complete = $3, size = $4, sha256 = $5 where organization_id = $1 and id = $2`,
		organization, id, true, info.Size, sha)
	return err
}

// PayloadInfo describes a complete payload; ok is false if the organization has none of that id.
func (tx *Tx) PayloadInfo(ctx context.Context, organization, id string) (info payload.Info, ok bool, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var sha []byte
		err := rows.Scan(&info.Name, &info.ContentType, &info.Size, &sha)
		info.SHA256 = hex.EncodeToString(sha)
		ok = true
		return err
	}, `select name, content_type, size, sha256 from delivery_payloads where organization_id = $1 and id = $2 and complete`,
		organization, id)
	return info, ok, err
}

// Chunk reads the i-th chunk of a payload, nil if there is none.
func (tx *Tx) Chunk(ctx context.Context, organization, id string, i int) (data []byte, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&data) },
		`select data from delivery_payload_chunks where organization_id = $1 and payload_id = $2 and i = $3`, organization, id, i)
	return data, err
}

// DropPayload removes a payload that nothing refers to yet.
func (tx *Tx) DropPayload(ctx context.Context, organization, id string) error {
	if _, err := tx.Exec(ctx, `delete from delivery_payload_chunks where organization_id = $1 and payload_id = $2`, organization, id); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `delete from delivery_payloads where organization_id = $1 and id = $2`, organization, id)
	return err
}

// UnusedPayloads lists payloads from before a time that no delivery refers to: a system statement.
func (tx *Tx) UnusedPayloads(ctx context.Context, before time.Time, limit int) (keys []Key, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var k Key
		err := rows.Scan(&k.Organization, &k.Delivery)
		keys = append(keys, k)
		return err
	}, `select p.organization_id, p.id from delivery_payloads p where p.created_at < $1
		and not exists (select 1 from delivery_deliveries d where d.payload_id = p.id) order by p.created_at limit $2`,
		tx.s.Time(before), limit)
	return keys, err
}

// ExpireKeys removes idempotency keys whose time has passed, up to a limit: a system statement.
func (tx *Tx) ExpireKeys(ctx context.Context, limit int) (int64, error) {
	return tx.Exec(ctx, `delete from delivery_idempotency where (organization_id, key) in (
		select organization_id, key from delivery_idempotency where expires_at <= $1 order by expires_at limit $2)`, tx.s.Time(tx.Now), limit)
}

// LeaseJob takes a maintenance job that is due and reports whether it did: a system statement.
func (tx *Tx) LeaseJob(ctx context.Context, name string, every, lease time.Duration) (bool, error) {
	n, err := tx.Exec(ctx, `insert into delivery_jobs (name, leased_until) values ($1, $2)
		on conflict (name) do update set leased_until = excluded.leased_until
		where delivery_jobs.leased_until <= $3 and (delivery_jobs.ran_at is null or delivery_jobs.ran_at <= $4)`,
		name, tx.s.Time(tx.Now.Add(lease)), tx.s.Time(tx.Now), tx.s.Time(tx.Now.Add(-every)))
	return n > 0, err
}

// FinishJob gives a job back: a system statement.
func (tx *Tx) FinishJob(ctx context.Context, name string) error {
	_, err := tx.Exec(ctx, `update delivery_jobs set leased_until = $2, ran_at = $2 where name = $1`, name, tx.s.Time(tx.Now))
	return err
}
