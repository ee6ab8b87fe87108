package delivery

import (
	"context"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Queue is what waits to be delivered: of all organizations, or of one.
type Queue struct {
	s   *DeliveryService
	org *Org // nil: all
}

// Queue returns the queue of all organizations: for those who run the service.
func (s *DeliveryService) Queue() *Queue { return &Queue{s: s} }

// Queue returns the organization's part of the queue.
func (o *Org) Queue() *Queue { return &Queue{s: o.s, org: o} }

// organization is whose queue it is, sqlstore.Everyone for all.
func (q *Queue) organization() (string, error) {
	if q.org == nil {
		return sqlstore.Everyone, q.s.open()
	}
	return q.org.name, q.org.check()
}

// Pause holds all that waits, until Resume: nothing more is attempted, by any process. Attempts under way go on, and new
// deliveries are accepted. What an organization paused stays so when the pause of all ends, and the reverse.
func (q *Queue) Pause(ctx context.Context) error { return q.pause(ctx, true) }

// Resume ends a Pause.
func (q *Queue) Resume(ctx context.Context) error { return q.pause(ctx, false) }

func (q *Queue) pause(ctx context.Context, paused bool) error {
	organization, err := q.organization()
	if err != nil {
		return err
	}
	err = q.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.PauseOrganization(ctx, organization, paused)
	}, sqlstore.Again)
	q.s.engine.Wake()
	return err
}
