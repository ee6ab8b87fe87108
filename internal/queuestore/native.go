package queuestore

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Native are the statements of the queue that each database has its own of. They work on batches,
// run inside a transaction, and take the time from their caller.
type Native interface {
	// Enqueue resolves destinations, then inserts deliveries, items and idempotency keys. It
	// inserts all of the batch or, where a destination is missing, nothing. A delivery whose key
	// is taken is not inserted and comes back with Taken set.
	Enqueue(
		ctx context.Context, tx sqlstore.Execer, organization string, now time.Time, batch []NewDelivery,
	) ([]Enqueued, error)

	// Ranks lists those of the given ranks that have ready items, in any order. It may list other
	// ranks too.
	Ranks(ctx context.Context, tx sqlstore.Execer, among []int64) ([]int64, error)
	// Walk lists up to limit lanes in (after, last] that have ready items, ascending. It lists the
	// known lanes, which are ascending as well, without a look at their items.
	Walk(ctx context.Context, tx sqlstore.Execer, after, last int64, limit int, known []int64) ([]int64, error)
	// Claim puts up to Share.N of the oldest ready items of each lane under a lease, beginning at
	// Share.Floor, and reads what they deliver.
	Claim(ctx context.Context, tx sqlstore.Execer, shares []Share, lease int64) ([]Claimed, error)
	// Mark returns the number of the item that became ready last, or a later number that no item
	// will have.
	Mark(ctx context.Context, tx sqlstore.Execer) (int64, error)

	// GateQuery returns the query that selects number, tokens, tokens_at and the current time of
	// gates, in the order of their numbers, and locks those that nobody has locked. nos is a list
	// of numbers.
	GateQuery(nos string) string
	// InFlight counts the gated items of each destination that are leased or, in strict order,
	// wait for a retry. An earlier statement of the transaction has to have locked the gates:
	// otherwise two processes count the same items.
	InFlight(ctx context.Context, tx sqlstore.Execer, nos map[int64]string) (map[int64]int, error)
	// InFlightOf counts the gated items of an organization that are leased. An earlier statement
	// of the transaction has to have locked its row of delivery_organizations.
	InFlightOf(ctx context.Context, tx sqlstore.Execer, organization string) (int, error)

	// End removes the items whose fence matches from the queue, appends their final attempts, and
	// makes those that end dead dead letters. It calls applied with the index of each of them.
	End(
		ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.AttemptRow, applied func(i int),
	) error
	// Reschedule puts the items whose fence matches back into the queue, and returns them with the
	// fence that was asked for. It increments the stored fence, so that each lease has its own.
	Reschedule(ctx context.Context, tx sqlstore.Execer, changes []Change) ([]Changed, error)
	// Append adds attempts to the history of items that stay in the queue.
	Append(ctx context.Context, tx sqlstore.Execer, now time.Time, attempts []*sqlstore.AttemptRow) error
	// Revive makes dead letters, which the transaction has locked, ready items again. The new
	// fence is the old one plus two; the number between belongs to the record of the return.
	Revive(ctx context.Context, tx sqlstore.Execer, now time.Time, letters []DeadLetterRow) error

	// Due makes scheduled items ready whose time is after the first time and not after the second,
	// and returns how many.
	Due(ctx context.Context, tx sqlstore.Execer, after, now time.Time, limit int) (int, error)
	// Overdue locks and lists items without a lease whose deadline is after the first time and not
	// after the second.
	Overdue(ctx context.Context, tx sqlstore.Execer, after, now time.Time, limit int) ([]Claimed, error)
	// Pending locks and lists the items of a delivery. With delivery "" it lists the items of the
	// destination whose number is no, without those under a lease that are to be cancelled already.
	Pending(
		ctx context.Context, tx sqlstore.Execer, organization, delivery string, no int64, limit int,
	) ([]Claimed, error)
}
