package sqlstore

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/deliverykit/delivery/payload"
)

// BeginPayload makes the row of a payload that is about to be stored: in the payload store if it
// has a key, otherwise in chunks. The payload is incomplete until [Tx.CompletePayload].
func (tx *Tx) BeginPayload(ctx context.Context, organization, id string, info payload.Info, key string) error {
	now := tx.Now
	if now.IsZero() { // a host's transaction with the database's time: this is close enough
		now = time.Now()
	}
	_, err := tx.Exec(ctx, `insert into delivery_payloads
		(organization_id, id, created_at, size, name, content_type, store_key)
		values ($1, $2, $3, 0, $4, $5, $6) on conflict do nothing`,
		organization, id, tx.Time(now), info.Name, info.ContentType, sql.NullString{String: key, Valid: key != ""})
	return err
}

// PutChunk stores chunk i of a payload, unless it is there.
func (tx *Tx) PutChunk(ctx context.Context, organization, id string, i int, data []byte) error {
	_, err := tx.Exec(ctx, `insert into delivery_payload_chunks (organization_id, payload_id, i, data)
		values ($1, $2, $3, $4) on conflict do nothing`, organization, id, i, data)
	return err
}

// CompletePayload records the size and hash of a payload whose content is stored.
func (tx *Tx) CompletePayload(ctx context.Context, organization, id string, info payload.Info) error {
	sha, err := hex.DecodeString(info.SHA256)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update delivery_payloads set complete = $3, size = $4, sha256 = $5
		where organization_id = $1 and id = $2`,
		organization, id, true, info.Size, sha)
	return err
}

// PayloadInfo describes a complete payload, and keeps it from being removed until the transaction
// ends. ok is false if the organization has none of that id.
func (tx *Tx) PayloadInfo(ctx context.Context, organization, id string) (info payload.Info, ok bool, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var sha []byte
		err := rows.Scan(&info.Name, &info.ContentType, &info.Size, &sha)
		info.SHA256 = hex.EncodeToString(sha)
		ok = true
		return err
	}, `select name, content_type, size, sha256 from delivery_payloads
		where organization_id = $1 and id = $2 and complete`+tx.Sharing(), organization, id)
	return info, ok, err
}

// PayloadKey returns the key of a payload in the payload store, "" if it is in chunks. ok is false
// if the organization has none of that id.
func (tx *Tx) PayloadKey(ctx context.Context, organization, id string) (key string, ok bool, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var k sql.NullString
		err := rows.Scan(&k)
		key, ok = k.String, true
		return err
	}, `select store_key from delivery_payloads where organization_id = $1 and id = $2`, organization, id)
	return key, ok, err
}

// Chunk reads chunk i of a payload, nil if there is none.
func (tx *Tx) Chunk(ctx context.Context, organization, id string, i int) (data []byte, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&data) },
		`select data from delivery_payload_chunks where organization_id = $1 and payload_id = $2 and i = $3`,
		organization, id, i)
	return data, err
}

// DropPayload removes a payload that no delivery refers to.
func (tx *Tx) DropPayload(ctx context.Context, organization, id string) error {
	_, err := tx.Exec(ctx, `delete from delivery_payload_chunks where organization_id = $1 and payload_id = $2`,
		organization, id)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `delete from delivery_payloads where organization_id = $1 and id = $2`, organization, id)
	return err
}

// UnusedPayload is a payload that no delivery refers to any more.
type UnusedPayload struct {
	Organization, ID string
	StoreKey         string // "": it is in chunks
	CreatedAt        time.Time
}

// CondemnPayloads finds payloads made between two times that no delivery refers to, and sees to it
// that none will: a system statement. It removes those in chunks. It makes those in the payload
// store incomplete: the caller has to remove them from the store and then call [Tx.DropPayload].
// Until then a later call finds them again. next is the time to go on from, zero at the end.
func (tx *Tx) CondemnPayloads(
	ctx context.Context, after, before time.Time, limit int,
) (unused []UnusedPayload, next time.Time, err error) {
	const used = `exists (select 1 from delivery_deliveries d where d.payload_id = p.id)`
	var found []UnusedPayload
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var p UnusedPayload
		var key sql.NullString
		err := rows.Scan(&p.Organization, &p.ID, &key, Time{&p.CreatedAt})
		p.StoreKey = key.String
		found = append(found, p)
		return err
	}, `select p.organization_id, p.id, p.store_key, p.created_at from delivery_payloads p
		where p.created_at >= $1 and p.created_at < $2 and not `+used+` order by p.created_at limit $3`+tx.SkipLocked(),
		tx.Time(after), tx.Time(before), limit)
	if err != nil {
		return nil, time.Time{}, err
	}
	for _, p := range found {
		// A delivery may have come to refer to it while the row was waited for. A second statement
		// sees that.
		var n int64
		n, err = tx.Exec(ctx, `update delivery_payloads as p set complete = $3
			where p.organization_id = $1 and p.id = $2 and not `+used, p.Organization, p.ID, false)
		if err == nil && n > 0 {
			unused = append(unused, p)
			if p.StoreKey == "" {
				err = tx.DropPayload(ctx, p.Organization, p.ID)
			}
		}
		if err != nil {
			return nil, time.Time{}, err
		}
	}
	if len(found) == limit {
		next = found[limit-1].CreatedAt
	}
	return unused, next, nil
}

// KnownKeys reports which keys of the payload store belong to payloads: a system statement.
func (tx *Tx) KnownKeys(ctx context.Context, keys []string) (known map[string]bool, err error) {
	known = map[string]bool{}
	if len(keys) == 0 {
		return known, nil
	}
	args := make([]any, len(keys))
	places := make([]string, len(keys))
	for i, k := range keys {
		args[i], places[i] = k, fmt.Sprintf("$%d", i+1)
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var k string
		err := rows.Scan(&k)
		known[k] = true
		return err
	}, `select store_key from delivery_payloads where store_key in (`+strings.Join(places, ", ")+`)`, args...)
	return known, err
}
