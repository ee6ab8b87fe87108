package sqlstore

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/deliverykit/delivery/queue"
)

// DeadLetter is an item that ended dead, and was neither retried nor purged since. Dialect.End makes it one. Its fence is that
// of its end.
type DeadLetter struct {
	Key
	Lane        int64
	Destination string
	Reason      queue.Reason
	DiedAt      time.Time
	Deadline    time.Time
	Deleted     bool // its destination is
	Lost        bool // its delivery or the stored payload is
}

// DeadFilter selects dead letters; a zero field selects all.
type DeadFilter struct {
	Delivery    string
	Destination string
	Topic       string
	Reasons     []queue.Reason
	From        time.Time // died then or later
	Before      time.Time // died earlier
	Until       time.Time // died then or earlier
}

// DeadPage is a part of the dead letters that a filter selects, in the order of delivery and number.
type DeadPage struct {
	After      *Key // nil: from the start
	Descending bool
	Limit      int
	Lock       bool
}

// deadColumns read of other tables by scalar subqueries, which no statistics turn into a join of whole tables.
const deadColumns = `l.organization_id, l.delivery_id, l.n, l.fence, l.lane, l.destination_id, l.reason, l.died_at, l.deadline,
  coalesce((select t.deleted_at is not null from delivery_destinations t
    where t.organization_id = l.organization_id and t.id = l.destination_id), true),
  coalesce((select d.payload_id is not null and not coalesce((select p.complete from delivery_payloads p
      where p.organization_id = d.organization_id and p.id = d.payload_id), false)
    from delivery_deliveries d where d.organization_id = l.organization_id and d.id = l.delivery_id), true)`

// deadFrom is where a filter finds its dead letters, as l, and the parameters of that.
func deadFrom(d Syntax, organization string, f DeadFilter) (from string, args []any) {
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
   and l.reason in (` + list(numbers) + `)`
	}
	return from, args
}

// DeadQuery is the query of DeadLetters, with $1 placeholders.
func DeadQuery(d Syntax, organization string, f DeadFilter, page DeadPage) (query string, args []any) {
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
func (tx *Tx) DeadLetters(ctx context.Context, organization string, f DeadFilter, page DeadPage) (letters []DeadLetter, err error) {
	query, args := DeadQuery(tx.s, organization, f, page)
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var l DeadLetter
		err := rows.Scan(&l.Organization, &l.Delivery, &l.N, &l.Fence, &l.Lane, &l.Destination, &l.Reason, Time{&l.DiedAt},
			Time{&l.Deadline}, &l.Deleted, &l.Lost)
		letters = append(letters, l)
		return err
	}, query, args...)
	return letters, err
}

// CountDead counts an organization's dead letters.
func (tx *Tx) CountDead(ctx context.Context, organization string, f DeadFilter) (n int, err error) {
	from, args := deadFrom(tx.s, organization, f)
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&n) }, `select count(*)`+from, args...)
	return n, err
}

// PurgeDead removes the dead letters that a filter selects, those after one key (nil: from the start) up to and including
// another, and returns how many. Their history stays.
func (tx *Tx) PurgeDead(ctx context.Context, organization string, f DeadFilter, after *Key, last Key) (int, error) {
	query, args := PurgeQuery(tx.s, organization, f, after, last)
	n, err := tx.Exec(ctx, query, args...)
	return int(n), err
}

// PurgeQuery is the statement of PurgeDead, with $1 placeholders.
func PurgeQuery(d Syntax, organization string, f DeadFilter, after *Key, last Key) (query string, args []any) {
	from, args := deadFrom(d, organization, f)
	bound := func(how string, k Key) {
		from += fmt.Sprintf("\n   and (l.delivery_id, l.n) %s ($%d, $%d)", how, len(args)+1, len(args)+2)
		args = append(args, k.Delivery, k.N)
	}
	if after != nil {
		bound(`>`, *after)
	}
	bound(`<=`, last)
	return `delete` + from, args
}

// Revive puts the items of dead letters, which the transaction has locked, back into the queue, and records that under
// Returned.
func (tx *Tx) Revive(ctx context.Context, letters []DeadLetter) error {
	if len(letters) == 0 {
		return nil
	}
	if err := tx.s.Revive(ctx, tx, tx.Now, letters); err != nil {
		return err
	}
	records := make([]*Attempt, len(letters))
	for i, l := range letters {
		records[i] = &Attempt{Key: l.Returned(), Destination: l.Destination, State: queue.Ready, Reason: queue.Requested, Took: NotBegun}
	}
	return tx.s.Append(ctx, tx, tx.Now, records)
}

// Returned is the key of the record that Revive makes.
func (l *DeadLetter) Returned() Key {
	k := l.Key
	k.Fence++
	return k
}

// End is how an item ended.
type End struct {
	N           int
	Destination string
	State       queue.State
}

// Ends lists how the items of a delivery ended last, by number. One that is pending again is among them.
func (tx *Tx) Ends(ctx context.Context, organization, delivery string) (ends []End, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var e End
		err := rows.Scan(&e.N, &e.Destination, &e.State)
		if last := len(ends) - 1; last >= 0 && ends[last].N == e.N {
			ends = ends[:last]
		}
		ends = append(ends, e)
		return err
	}, `select n, destination_id, state from delivery_attempts
		where organization_id = $1 and delivery_id = $2 and state >= 3 order by n, fence`, organization, delivery)
	return ends, err
}

// LockDelivery keeps a delivery from being removed, and reports whether it is there.
func (tx *Tx) LockDelivery(ctx context.Context, organization, id string) (found bool, err error) {
	err = tx.Query(ctx, func(*sql.Rows) error {
		found = true
		return nil
	}, `select 1 from delivery_deliveries d where d.organization_id = $1 and d.id = $2`+tx.s.Locking("d"), organization, id)
	return found, err
}

// LinkReplay notes of a delivery that it repeats another.
func (tx *Tx) LinkReplay(ctx context.Context, organization, id, replayOf string) error {
	_, err := tx.Exec(ctx, `update delivery_deliveries set replay_of = $3 where organization_id = $1 and id = $2`, organization, id, replayOf)
	return err
}

// Summaries reads what a list shows of deliveries, by id: neither options nor content.
func (tx *Tx) Summaries(ctx context.Context, organization string, ids []string) (map[string]Delivery, error) {
	all := make(map[string]Delivery, len(ids))
	query, args := SummariesQuery(organization, ids)
	err := tx.Query(ctx, func(rows *sql.Rows) error {
		d := Delivery{Organization: organization}
		var sha []byte
		err := rows.Scan(&d.ID, Time{&d.CreatedAt}, Time{&d.Deadline}, Text{&d.Topic}, &d.Priority, Text{&d.CorrelationID},
			Text{&d.Payload.Name}, &d.Payload.ContentType, &d.Payload.Size, &sha)
		d.Payload.SHA256 = hex.EncodeToString(sha)
		all[d.ID] = d
		return err
	}, query, args...)
	return all, err
}

// SummariesQuery is the query of Summaries, with $1 placeholders.
func SummariesQuery(organization string, ids []string) (query string, args []any) {
	in, args := among(organization, ids)
	return `select id, created_at, deadline, topic, priority, correlation_id, payload_name, payload_type, payload_size, payload_sha256
		from delivery_deliveries where organization_id = $1 and id ` + in, args
}

// DestinationsByID reads destinations, deleted ones too.
func (tx *Tx) DestinationsByID(ctx context.Context, organization string, ids []string) ([]*Destination, error) {
	in, args := among(organization, ids)
	return tx.destinations(ctx, `where d.organization_id = $1 and d.id `+in, args...)
}

// among is the condition that an id is one of some, and the parameters of a statement whose first is the organization.
func among(organization string, ids []string) (in string, args []any) {
	args = append(make([]any, 0, len(ids)+1), organization)
	marks := make([]string, len(ids))
	for i, id := range ids {
		args = append(args, id)
		marks[i] = fmt.Sprintf("$%d", i+2)
	}
	if len(ids) == 1 {
		return `= $2`, args
	}
	return `in (` + strings.Join(marks, ", ") + `)`, args
}
