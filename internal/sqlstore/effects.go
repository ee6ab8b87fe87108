package sqlstore

import "context"

// Effect is something that happens in the transaction that finishes items, besides their end or
// their return to the queue. A Store has a fixed list of effects; several transactions may call one
// at once.
type Effect interface {
	// Finish writes what f means for the subject of the effect. Its error undoes the transaction,
	// and with it the end of the items. The transaction can run again, so Finish must have no
	// effect outside of it.
	//
	// Most transactions are about nothing that an effect cares for. It returns from these before it
	// touches the database: every statement here delays all items.
	Finish(ctx context.Context, tx *Tx, f *Finished) error
}

// effectsOf lists the effects of a store in the order in which they run. All transactions that
// finish items lock rows in this order, so that they cannot deadlock:
//
//  1. items of the queue: [Tx.Finish]
//  2. delivery_written: rows of those items, inserted only
//  3. delivery_health, by the number of the destination, and with each row its destination
//  4. the rows of further effects, which lock them in a fixed order too, and none of the above
func effectsOf(further []Effect) []Effect {
	return append([]Effect{writtenEffect{}, healthEffect{}}, further...)
}
