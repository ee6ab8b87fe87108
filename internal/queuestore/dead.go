package queuestore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/queue"
)

// DeadLetterRow is an item that ended dead and has not been retried or purged since. [Native].End
// makes it one. Its fence is the one that it ended with.
type DeadLetterRow struct {
	sqlstore.Key
	Lane        int64
	Destination string
	Reason      queue.Reason
	DiedAt      time.Time
	Deadline    time.Time
	Deleted     bool // its destination is deleted
	Lost        bool // its delivery or the stored payload is gone
}

// DeadFilter selects dead letters. A zero field selects all.
type DeadFilter struct {
	Delivery    string
	Destination string
	Topic       string
	Reasons     []queue.Reason
	From        time.Time // died then or later
	Before      time.Time // died earlier
	Until       time.Time // died then or earlier
}

// DeadPage is a part of the dead letters that a filter selects, ordered by delivery and number.
type DeadPage struct {
	After      *sqlstore.Key // nil: begin at the start
	Descending bool
	Limit      int
	Lock       bool
}

// deadColumns read other tables by scalar subqueries, which no statistics turn into a join of whole
// tables.
const deadColumns = `l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at,
  l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)`

// deadFrom returns the clauses that find the dead letters of a filter, as l, and their parameters.
func deadFrom(d sqlstore.Syntax, organization string, f DeadFilter) (from string, args []any) {
	args = []any{organization}
	from = `
  from delivery_dead_letters as l`
	if f.Destination != "" {
		from += d.By(`delivery_dead_letters_destination`)
	}
	from += `
 where l.organization_id = $1`
	and := func(condition string, arg any) {
		args = append(args, arg)
		from += fmt.Sprintf("\n   and %s $%d", condition, len(args))
	}
	if f.Delivery != "" {
		and(`l.delivery_id =`, f.Delivery)
	}
	if f.Destination != "" {
		and(`l.destination_id =`, f.Destination)
	}
	if !f.From.IsZero() {
		and(`l.died_at >=`, d.Time(f.From))
	}
	if !f.Before.IsZero() {
		and(`l.died_at <`, d.Time(f.Before))
	}
	if !f.Until.IsZero() {
		and(`l.died_at <=`, d.Time(f.Until))
	}
	if f.Topic != "" {
		and(`(select d.topic from delivery_deliveries d
     where d.organization_id = l.organization_id and d.id = l.delivery_id) =`, f.Topic)
	}
	if len(f.Reasons) > 0 {
		numbers := make([]int64, len(f.Reasons))
		for i, r := range f.Reasons {
			numbers[i] = int64(r)
		}
		from += `
   and l.reason in (` + sqlstore.Numbers(numbers) + `)`
	}
	return from, args
}

// DeadQuery returns the query of [DeadLetters], with $1 placeholders.
func DeadQuery(d sqlstore.Syntax, organization string, f DeadFilter, page DeadPage) (query string, args []any) {
	from, args := deadFrom(d, organization, f)
	past, order := `>`, "\n order by l.delivery_id, l.n"
	if page.Descending {
		past, order = `<`, "\n order by l.delivery_id desc, l.n desc"
	}
	if page.After != nil {
		from += fmt.Sprintf("\n   and (l.delivery_id, l.n) %s ($%d, $%d)", past, len(args)+1, len(args)+2)
		args = append(args, page.After.Delivery, page.After.N)
	}
	args = append(args, page.Limit)
	query = `select ` + deadColumns + from + order + fmt.Sprintf(` limit $%d`, len(args))
	if page.Lock {
		query += d.Locking("l")
	}
	return query, args
}

// DeadLetters lists a page of an organization's dead letters.
func DeadLetters(
	ctx context.Context, tx *sqlstore.Tx, organization string, f DeadFilter, page DeadPage,
) (letters []DeadLetterRow, err error) {
	query, args := DeadQuery(tx.Syntax, organization, f, page)
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var l DeadLetterRow
		err := rows.Scan(&l.Organization, &l.Delivery, &l.N, &l.Fence, &l.Lane, &l.Destination, &l.Reason,
			sqlstore.Time{T: &l.DiedAt}, sqlstore.Time{T: &l.Deadline}, &l.Deleted, &l.Lost)
		letters = append(letters, l)
		return err
	}, query, args...)
	return letters, err
}

// CountDead counts an organization's dead letters.
func CountDead(ctx context.Context, tx *sqlstore.Tx, organization string, f DeadFilter) (n int, err error) {
	from, args := deadFrom(tx.Syntax, organization, f)
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&n) }, `select count(*)`+from, args...)
	return n, err
}

// PurgeDead removes the dead letters that a filter selects and whose key is greater than after and
// not greater than last. It returns how many. after can be nil. Their history stays.
func PurgeDead(
	ctx context.Context, tx *sqlstore.Tx, organization string, f DeadFilter, after *sqlstore.Key, last sqlstore.Key,
) (int, error) {
	query, args := PurgeQuery(tx.Syntax, organization, f, after, last)
	n, err := tx.Exec(ctx, query, args...)
	return int(n), err
}

// PurgeQuery returns the statement of [PurgeDead], with $1 placeholders.
func PurgeQuery(
	d sqlstore.Syntax, organization string, f DeadFilter, after *sqlstore.Key, last sqlstore.Key,
) (query string, args []any) {
	from, args := deadFrom(d, organization, f)
	bound := func(how string, k sqlstore.Key) {
		from += fmt.Sprintf("\n   and (l.delivery_id, l.n) %s ($%d, $%d)", how, len(args)+1, len(args)+2)
		args = append(args, k.Delivery, k.N)
	}
	if after != nil {
		bound(`>`, *after)
	}
	bound(`<=`, last)
	return `delete` + from, args
}

// Revive makes dead letters, which the transaction has locked, ready items again, and records that
// under the key [DeadLetterRow.Returned].
func (s *Store) Revive(ctx context.Context, tx *sqlstore.Tx, letters []DeadLetterRow) error {
	if len(letters) == 0 {
		return nil
	}
	if err := s.Native.Revive(ctx, tx, tx.Now, letters); err != nil {
		return err
	}
	records := make([]*sqlstore.AttemptRow, len(letters))
	for i, l := range letters {
		records[i] = &sqlstore.AttemptRow{
			Key: l.Returned(), Destination: l.Destination, State: queue.Ready, Reason: queue.Requested,
			Took: sqlstore.NotBegun,
		}
	}
	return s.Append(ctx, tx, tx.Now, records)
}

// Returned returns the key of the record that [Store.Revive] makes.
func (l *DeadLetterRow) Returned() sqlstore.Key {
	k := l.Key
	k.Fence++
	return k
}
