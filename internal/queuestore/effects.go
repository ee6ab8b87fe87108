package queuestore

import (
	"context"
	"encoding/json"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

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
	Finish(ctx context.Context, tx *sqlstore.Tx, f *Finished) error
}

// effectsOf lists the effects of a store in the order in which they run. All transactions that
// finish items lock rows in this order, so that they cannot deadlock:
//
//  1. items of the queue: [Store.Finish]
//  2. delivery_written: rows of those items, inserted only
//  3. delivery_health, by the number of the destination, and with each row its destination
//  4. the rows of further effects, which lock them in a fixed order too, and none of the above
func effectsOf(s *Store, further []Effect) []Effect {
	return append([]Effect{writtenEffect{}, healthEffect{s}}, further...)
}

// writtenEffect records what the applied outcomes wrote, as far as it is to be removed some day.
type writtenEffect struct{}

// Finish implements [Effect].
func (writtenEffect) Finish(ctx context.Context, tx *sqlstore.Tx, f *Finished) error {
	for i, o := range f.Outcomes {
		if !o.Written || !f.Applied[i] {
			continue
		}
		reference, err := json.Marshal(o.Reference)
		if err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, `insert into delivery_written
			(organization_id, delivery_id, n, destination_no, written_at, reference)
			values ($1, $2, $3, $4, $5, $6) on conflict do nothing`,
			o.Organization, o.Delivery, o.N, o.No, tx.Time(tx.Now), tx.JSON(reference)); err != nil {
			return err
		}
	}
	return nil
}
