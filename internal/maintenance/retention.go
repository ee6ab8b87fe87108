package maintenance

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// expireDeliveries removes deliveries that are older than the retention, organization by
// organization.
func expireDeliveries(s *settings.Settings) Chore {
	wanted := func() bool { return s.Policy().Retention.Deliveries > 0 }
	return Chore{Name: "retention", Every: time.Hour, Wanted: wanted, Do: func(ctx context.Context, r *Run) error {
		keep := s.Policy().Retention
		if keep.Deliveries == 0 { // changed since
			return nil
		}
		organization, after := "", "" // of the last batch
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (b Batch, err error) {
			of := organization
			if after == "" {
				if of, err = nextOrganization(ctx, tx, organization); err != nil || of == "" {
					return Batch{Done: true}, err
				}
			}
			before, deadBefore := tx.Now.Add(-keep.Deliveries), tx.Now.Add(-keep.DeadLetters)
			n, next, err := retain(ctx, tx, of, after, before, deadBefore, batchSize)
			return Batch{Then: func() {
				organization, after = of, next
				r.Count(&r.Report.DeliveriesExpired, n)
			}}, err
		})
	}}
}

// firstID returns the smallest UUIDv7 of a time (RFC 9562, section 5.7).
func firstID(at time.Time) string {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], uint64(max(0, at.UnixMilli()))<<16)
	id[6], id[8] = 0x70, 0x80
	return id.String()
}

// nextOrganization returns the first organization after the given name that has deliveries, "" if
// there is none: a system statement.
func nextOrganization(ctx context.Context, tx *sqlstore.Tx, after string) (name string, err error) {
	err = tx.Query(
		ctx,
		func(rows *sql.Rows) error { return rows.Scan(&name) },
		`select organization_id from delivery_deliveries where organization_id > $1 order by organization_id limit 1`,
		after,
	)
	return name, err
}

// retain removes an organization's deliveries that were accepted before a time, with their history.
// It looks at up to limit of them after the given id; "" is the start. It keeps those that have
// items in the queue, or dead letters that died at deadBefore or later. next is the id to go on
// after, "" at the end.
func retain(
	ctx context.Context, tx *sqlstore.Tx, organization, after string, before, deadBefore time.Time, limit int,
) (removed int, next string, err error) {
	if after == "" {
		after = uuid.Nil.String()
	}
	old, err := ids(ctx, tx, `select id from delivery_deliveries
		where organization_id = $1 and id > $2 and id < $3 and created_at < $4 order by id limit $5`,
		organization, after, firstID(before), tx.Time(before), limit)
	if err != nil || len(old) == 0 {
		return 0, "", err
	}
	if len(old) == limit {
		next = old[len(old)-1]
	}
	in, args := sqlstore.Among(organization, old)
	// Dead letters first: a call that retries one locks it first as well, and queues its item then.
	if _, err := tx.Exec(ctx, `delete from delivery_dead_letters where organization_id = $1 and delivery_id `+in+
		fmt.Sprintf(` and died_at < $%d`, len(args)+1), append(args, tx.Time(deadBefore))...); err != nil {
		return 0, "", err
	}
	ended, err := ids(ctx, tx, `select d.id from delivery_deliveries d where d.organization_id = $1 and d.id `+in+`
		and not exists (select 1 from delivery_queue q
			where q.organization_id = d.organization_id and q.delivery_id = d.id)
		and not exists (select 1 from delivery_dead_letters l
			where l.organization_id = d.organization_id and l.delivery_id = d.id)`, args...)
	if err != nil || len(ended) == 0 {
		return 0, next, err
	}
	in, args = sqlstore.Among(organization, ended)
	for _, from := range []string{
		`delivery_checkpoints where organization_id = $1 and delivery_id `,
		`delivery_written where removed_at is not null and organization_id = $1 and delivery_id `,
		`delivery_attempts where organization_id = $1 and delivery_id `,
		`delivery_deliveries where organization_id = $1 and id `,
	} {
		if _, err := tx.Exec(ctx, `delete from `+from+in, args...); err != nil {
			return 0, "", err
		}
	}
	return len(ended), next, nil
}

// ids returns the ids that a query selects.
func ids(ctx context.Context, tx *sqlstore.Tx, query string, args ...any) (all []string, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		all = append(all, id)
		return err
	}, query, args...)
	return all, err
}
