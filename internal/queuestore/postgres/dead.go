package postgres

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Revive implements [queuestore.Native].
func (d Native) Revive(
	ctx context.Context, tx sqlstore.Execer, now time.Time, letters []queuestore.DeadLetterRow,
) error {
	var lane, deadline array
	for _, l := range letters {
		lane.int(l.Lane)
		deadline.time(l.Deadline)
	}
	args := keyArrays(len(letters), func(i int) sqlstore.Key { return letters[i].Key })
	_, err := tx.ExecContext(ctx, revive, append(args, lane.String(), deadline.String(), d.Time(now))...)
	return err
}
