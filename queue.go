package delivery

import (
	"context"
	"slices"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// Queue holds the items that wait to be delivered: for all organizations, or for one.
type Queue struct {
	s   *DeliveryService
	org *Org // nil: all
}

// Queue returns the queue of all organizations. It is for the operators of the service.
func (s *DeliveryService) Queue() *Queue { return &Queue{s: s} }

// Queue returns the organization's part of the queue.
func (o *Org) Queue() *Queue { return &Queue{s: o.s, org: o} }

// organization returns the owner of the queue, sqlstore.Everyone for all, after checking the
// caller's rights.
func (q *Queue) organization(ctx context.Context, action access.Action) (string, error) {
	if q.org == nil {
		return sqlstore.Everyone, q.s.open()
	}
	return q.org.name, q.org.authorize(ctx, action)
}

// Pause holds all items until Resume: no process attempts any more of them. Attempts under way go
// on, and new deliveries are accepted. The pause of an organization and the pause of all are
// independent: ending one leaves the other.
func (q *Queue) Pause(ctx context.Context) error { return q.pause(ctx, true) }

// Resume ends a Pause.
func (q *Queue) Resume(ctx context.Context) error { return q.pause(ctx, false) }

func (q *Queue) pause(ctx context.Context, paused bool) error {
	organization, err := q.organization(ctx, access.OperateQueue)
	if err != nil {
		return err
	}
	err = q.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.PauseOrganization(ctx, organization, paused)
	}, Committed: sqlstore.Again})
	q.s.engine.Wake()
	return err
}

const statsWindow = 5 * time.Minute

// Stats counts the items that wait. It reads all of them, which takes about half a second for a
// million items: it is for dashboards and alerts, not for each request.
func (q *Queue) Stats(ctx context.Context) (*queue.Stats, error) {
	organization, err := q.organization(ctx, access.ReadDeliveries)
	if err != nil {
		return nil, err
	}
	var s *queue.Stats
	err = q.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		s = &queue.Stats{At: tx.Now}
		counts, err := queuestore.LaneCounts(ctx, tx, organization)
		if err != nil {
			return err
		}
		infos, err := laneInfos(ctx, tx, counts)
		if err != nil {
			return err
		}
		for _, c := range counts {
			info := infos[queuestore.DestinationOf(c.Lane)]
			switch {
			case c.State == queue.Processing:
				s.Processing += c.N
			case info.Held(tx.Now):
				s.Held += c.N
			case c.State == queue.Scheduled:
				s.Scheduled += c.N
			default:
				s.Ready += c.N
				if s.Oldest.IsZero() || c.Oldest.Before(s.Oldest) {
					s.Oldest = c.Oldest
				}
			}
		}
		since := tx.Now.Add(-statsWindow).Truncate(time.Minute)
		ended, err := queuestore.Sum(ctx, tx, organization, 0, since)
		if err != nil {
			return err
		}
		s.PerSecond = float64(ended.Delivered+ended.Dead) / tx.Now.Sub(since).Seconds()
		switch {
		case s.Ready == 0:
		case s.PerSecond == 0:
			s.TimeToEmpty = -1
		default:
			s.TimeToEmpty = time.Duration(float64(s.Ready) / s.PerSecond * float64(time.Second)).Round(time.Second)
		}
		s.Snapshot, err = q.s.store.Snapshot(ctx, tx)
		return err
	})
	return s, err
}

const lanesAtOnce = 1000

func laneInfos(
	ctx context.Context, tx *sqlstore.Tx, counts []queuestore.LaneCount,
) (map[int64]*queuestore.LaneInfo, error) {
	all := map[int64]*queuestore.LaneInfo{}
	for chunk := range slices.Chunk(counts, lanesAtOnce) {
		nos := make([]int64, len(chunk))
		for i, c := range chunk {
			nos[i] = queuestore.DestinationOf(c.Lane)
			all[nos[i]] = &queuestore.LaneInfo{}
		}
		some, err := queuestore.LaneInfos(ctx, tx, nos)
		if err != nil {
			return nil, err
		}
		for no, info := range some {
			all[no] = &info
		}
	}
	return all, nil
}
