package spool

import (
	"context"
	"database/sql"
	"encoding/hex"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// insertPayload adds a payload whose content is about to be stored: in the payload store if it has
// a key, otherwise in chunks. It is incomplete until [completePayload]. A second call changes
// nothing.
func insertPayload(ctx context.Context, tx *sqlstore.Tx, organization, id string, info payload.Info, key string) error {
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

// insertChunk stores chunk i of a payload, unless it is there.
func insertChunk(ctx context.Context, tx *sqlstore.Tx, organization, id string, i int, data []byte) error {
	_, err := tx.Exec(ctx, `insert into delivery_payload_chunks (organization_id, payload_id, i, data)
		values ($1, $2, $3, $4) on conflict do nothing`, organization, id, i, data)
	return err
}

// completePayload records the size and hash of a payload whose content is stored.
func completePayload(ctx context.Context, tx *sqlstore.Tx, organization, id string, info payload.Info) error {
	sha, err := hex.DecodeString(info.SHA256)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update delivery_payloads set complete = $3, size = $4, sha256 = $5
		where organization_id = $1 and id = $2`,
		organization, id, true, info.Size, sha)
	return err
}

// Lock describes a complete payload, and keeps it from being removed until the transaction ends. ok
// is false if the organization has none of that id.
func Lock(ctx context.Context, tx *sqlstore.Tx, organization, id string) (info payload.Info, ok bool, err error) {
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

// keyOf returns the key of a payload in the payload store, "" if it is in chunks. ok is false if
// the organization has none of that id.
func keyOf(ctx context.Context, tx *sqlstore.Tx, organization, id string) (key string, ok bool, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var k sql.NullString
		err := rows.Scan(&k)
		key, ok = k.String, true
		return err
	}, `select store_key from delivery_payloads where organization_id = $1 and id = $2`, organization, id)
	return key, ok, err
}

// readChunk reads chunk i of a payload, nil if there is none.
func readChunk(ctx context.Context, tx *sqlstore.Tx, organization, id string, i int) (data []byte, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&data) },
		`select data from delivery_payload_chunks where organization_id = $1 and payload_id = $2 and i = $3`,
		organization, id, i)
	return data, err
}

// deletePayload removes a payload and its chunks.
func deletePayload(ctx context.Context, tx *sqlstore.Tx, organization, id string) error {
	_, err := tx.Exec(ctx, `delete from delivery_payload_chunks where organization_id = $1 and payload_id = $2`,
		organization, id)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `delete from delivery_payloads where organization_id = $1 and id = $2`, organization, id)
	return err
}

// Unused is a payload that no delivery refers to any more.
type Unused struct {
	Organization, ID string
	StoreKey         string // "": it is in chunks
	CreatedAt        time.Time
}

// Condemn finds up to limit payloads made between two times that no delivery refers to, and makes
// sure that none will: a system statement. It removes those in chunks. It makes those in the
// payload store incomplete, and the caller has to remove them with [Spool.Drop]; until then a later
// call finds them again. next is the time to go on from, zero at the end.
func Condemn(
	ctx context.Context, tx *sqlstore.Tx, after, before time.Time, limit int,
) (unused []Unused, next time.Time, err error) {
	const used = `exists (select 1 from delivery_deliveries d where d.payload_id = p.id)`
	var found []Unused
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var p Unused
		var key sql.NullString
		err := rows.Scan(&p.Organization, &p.ID, &key, sqlstore.Time{T: &p.CreatedAt})
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
				err = deletePayload(ctx, tx, p.Organization, p.ID)
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
func KnownKeys(ctx context.Context, tx *sqlstore.Tx, keys []string) (known map[string]bool, err error) {
	known = map[string]bool{}
	if len(keys) == 0 {
		return known, nil
	}
	in, args := sqlstore.Placeholders(nil, keys)
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var k string
		err := rows.Scan(&k)
		known[k] = true
		return err
	}, `select store_key from delivery_payloads where store_key in (`+in+`)`, args...)
	return known, err
}

// installation returns the id that tells this database from others that use the same payload store.
func installation(ctx context.Context, tx *sqlstore.Tx) (id string, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&id) }, `select id from delivery_installation`)
	return id, err
}
