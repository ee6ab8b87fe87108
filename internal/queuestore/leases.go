package queuestore

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/queue"
)

// A claim takes its items under one lease, a row of delivery_leases. To extend a lease, or to see
// that it has ended, that row is enough. Each item names its lease. The lease says where its items
// are, because no index finds them by their lease.

// span is a part of a lane that has items of a lease: the lane, and the seq of the first and of the
// last item.
type span [3]int64

// Grant stores the lease of items that were just claimed: a system statement.
func Grant(ctx context.Context, tx *sqlstore.Tx, lease int64, items []Claimed, until time.Time) error {
	places := make([][2]int64, len(items))
	for i := range items {
		places[i] = [2]int64{items[i].Lane, items[i].Seq}
	}
	return grant(ctx, tx, lease, places, until)
}

// grant is Grant of places: each is a lane and a seq.
func grant(ctx context.Context, tx *sqlstore.Tx, lease int64, places [][2]int64, until time.Time) error {
	slices.SortFunc(places, func(a, b [2]int64) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	var spans []span
	for _, p := range places {
		if last := len(spans) - 1; last >= 0 && spans[last][0] == p[0] {
			spans[last][2] = p[1]
		} else {
			spans = append(spans, span{p[0], p[1], p[1]})
		}
	}
	text, err := json.Marshal(spans)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into delivery_leases (id, until, spans) values ($1, $2, $3)`,
		lease, tx.Time(until), string(text))
	return err
}

// Prolong extends leases, and returns those that are still held: a system statement.
func Prolong(ctx context.Context, tx *sqlstore.Tx, leases []int64, until time.Time) (held map[int64]bool, err error) {
	held = make(map[int64]bool, len(leases))
	if len(leases) == 0 {
		return held, nil
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var id int64
		err := rows.Scan(&id)
		held[id] = true
		return err
	}, `update delivery_leases set until = $1 where id in (`+sqlstore.Numbers(leases)+`) returning id`, tx.Time(until))
	return held, err
}

// Flagged lists the items under some leases that are to be cancelled: a system statement.
func Flagged(ctx context.Context, tx *sqlstore.Tx, leases []int64) (all []Changed, err error) {
	if len(leases) == 0 {
		return nil, nil
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var c Changed
		err := rows.Scan(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Cancel)
		all = append(all, c)
		return err
	}, `select organization_id, delivery_id, n, fence, cancel from delivery_queue
		where cancel <> 0 and lease in (`+sqlstore.Numbers(leases)+`)`)
	return all, err
}

// Abandon moves items from their leases to one that ends now. The other items of their claims keep
// theirs.
func Abandon(ctx context.Context, tx *sqlstore.Tx, lease int64, keys []sqlstore.Key) error {
	var places [][2]int64
	for _, k := range keys {
		err := tx.Query(ctx, func(rows *sql.Rows) error {
			var p [2]int64
			err := rows.Scan(&p[0], &p[1])
			places = append(places, p)
			return err
		}, `update delivery_queue set lease = $1
			where organization_id = $2 and delivery_id = $3 and n = $4 and fence = $5 and lease <> 0
			returning lane, seq`,
			lease, k.Organization, k.Delivery, k.N, k.Fence)
		if err != nil {
			return err
		}
	}
	if len(places) == 0 {
		return nil
	}
	return grant(ctx, tx, lease, places, tx.Now)
}

// NoteProgress stores how many bytes of a leased item the other side has, unless it is being
// finished.
func NoteProgress(ctx context.Context, tx *sqlstore.Tx, k sqlstore.Key, done int64) error {
	_, err := tx.Exec(ctx, `update delivery_queue set progress = $5
		where organization_id = $1 and delivery_id = $2 and n = (select n from delivery_queue
			where organization_id = $1 and delivery_id = $2 and n = $3 and fence = $4 and lease <> 0`+
		tx.SkipLocked()+`)`, k.Organization, k.Delivery, k.N, k.Fence, done)
	return err
}

// Drop removes leases that have no items left, except those that a sweep has locked: a system
// statement.
func Drop(ctx context.Context, tx *sqlstore.Tx, leases []int64) error {
	if len(leases) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `delete from delivery_leases where id in (
		select id from delivery_leases where id in (`+sqlstore.Numbers(leases)+`)`+tx.SkipLocked()+`)`)
	return err
}

// Expired are leases that have ended, and some of their items.
type Expired struct {
	Items  []Claimed
	More   bool // there may be more such leases
	leases []expired
}

// maxExpired is how many leases one transaction looks at: each may have items in hundreds of lanes.
const maxExpired = 50

type expired struct {
	id    int64
	spans []span
}

// LockExpired locks leases that ended later than after, and lists up to limit of their items that
// no other transaction has locked: a system statement. When the items are finished, the caller has
// to call [DropExpired].
func LockExpired(ctx context.Context, tx *sqlstore.Tx, after time.Time, limit int) (x Expired, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var l expired
		var spans []byte
		if err := rows.Scan(&l.id, &spans); err != nil {
			return err
		}
		if err := json.Unmarshal(spans, &l.spans); err != nil {
			return fmt.Errorf("sqlstore: lease %d: %w", l.id, err)
		}
		x.leases = append(x.leases, l)
		return nil
	}, `select id, spans from delivery_leases where until > $1 and until <= $2 order by until limit $3`+tx.SkipLocked(),
		tx.Time(after), tx.Time(tx.Now), maxExpired)
	if err != nil {
		return x, err
	}
	x.More = len(x.leases) == maxExpired
	for _, l := range x.leases {
		for _, s := range l.spans {
			items, err := leased(ctx, tx, l.id, s, limit-len(x.Items), tx.SkipLocked())
			if err != nil {
				return x, err
			}
			if x.Items = append(x.Items, items...); len(x.Items) >= limit {
				return x, nil
			}
		}
	}
	return x, nil
}

// Leased is the query of the items of a lease in one lane.
const Leased = `select organization_id, delivery_id, n, fence, lane, seq, attempt, lost, cancel, deadline
	from delivery_queue where state = 0 and lane = $1 and seq >= $2 and seq <= $3 and lease = $4 order by seq limit $5`

func leased(
	ctx context.Context, tx *sqlstore.Tx, lease int64, s span, limit int, locking string,
) (items []Claimed, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		c := Claimed{State: queue.Processing}
		err := rows.Scan(&c.Organization, &c.Delivery, &c.N, &c.Fence, &c.Lane, &c.Seq, &c.Attempt, &c.Lost, &c.Cancel,
			sqlstore.Time{T: &c.Deadline})
		items = append(items, c)
		return err
	}, Leased+locking, s[0], s[1], s[2], lease, limit)
	return items, err
}

// DropExpired removes the leases that have no items left, and returns how many. A lease whose items
// are locked stays for the next sweep.
func DropExpired(ctx context.Context, tx *sqlstore.Tx, x Expired) (int, error) {
	var empty []int64
	for _, l := range x.leases {
		left, err := hasItems(ctx, tx, l)
		if err != nil {
			return 0, err
		}
		if !left {
			empty = append(empty, l.id)
		}
	}
	return len(empty), Drop(ctx, tx, empty)
}

func hasItems(ctx context.Context, tx *sqlstore.Tx, l expired) (bool, error) {
	for _, s := range l.spans {
		items, err := leased(ctx, tx, l.id, s, 1, "")
		if err != nil || len(items) > 0 {
			return true, err
		}
	}
	return false, nil
}
