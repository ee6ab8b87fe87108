package queuestore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/queuestore/postgres"
	"github.com/deliverykit/delivery/internal/queuestore/sqlite"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// effect is a function as an Effect.
type effect func(ctx context.Context, tx *sqlstore.Tx, f *queuestore.Finished) error

func (e effect) Finish(ctx context.Context, tx *sqlstore.Tx, f *queuestore.Finished) error {
	return e(ctx, tx, f)
}

const (
	effectDestination = "00000000-0000-7000-8000-000000000001"
	effectDelivery    = "00000000-0000-7000-8000-000000000002"
)

// counts counts the rows of the tables that finishing items changes.
func counts(ctx context.Context, tx *sqlstore.Tx) (all map[string]int, err error) {
	all = map[string]int{}
	for _, name := range []string{"queue", "dead_letters", "attempts", "written", "health", "jobs"} {
		n := 0
		if err := tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&n) },
			`select count(*) from delivery_`+name); err != nil {
			return nil, err
		}
		if n > 0 {
			all[name] = n
		}
	}
	return all, nil
}

// stored are the counts of a store.
func stored(t *testing.T, s *queuestore.Store) string {
	t.Helper()
	var all map[string]int
	if err := s.Read(t.Context(), func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		all, err = counts(ctx, tx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(all)
}

// enqueue makes a destination and a delivery with an item of it, and returns both.
func enqueue(t *testing.T, s *queuestore.Store) (*sqlstore.DestinationRow, sqlstore.Key) {
	t.Helper()
	d := &sqlstore.DestinationRow{Destination: destination.Destination{
		Organization: "acme", ID: effectDestination, Type: "x", Config: []byte(`{}`),
	}}
	var items []queuestore.Claimed
	commit(t, s, func(ctx context.Context, tx *sqlstore.Tx) error {
		if err := tx.InsertDestination(ctx, d); err != nil {
			return err
		}
		if _, err := s.Enqueue(ctx, tx, "acme", tx.Now, []queuestore.NewDelivery{{
			DeliveryRow: sqlstore.DeliveryRow{
				Organization: "acme", ID: effectDelivery, CreatedAt: tx.Now,
				Payload: sqlstore.Payload{
					Info:   payload.Info{ContentType: "text/plain", Size: 2, SHA256: fmt.Sprintf("%064x", 1)},
					Inline: []byte("hi"),
				},
			},
			Items:           []queuestore.NewItem{{Destination: d.ID}},
			MaxDestinations: 1,
		}}); err != nil {
			return err
		}
		var err error
		items, err = s.Pending(ctx, tx, "acme", effectDelivery, 0, 10)
		return err
	})
	if len(items) != 1 {
		t.Fatalf("the items are %+v", items)
	}
	return d, items[0].Key
}

// An added effect runs in the transaction that finishes items, after the store's own effects. Its
// error undoes everything.
func TestAddedEffectRunsLastInTheTransaction(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		broken := errors.New("the effect failed")
		fails := true
		var saw string
		var ended []queue.State
		var changes []queuestore.HealthChange
		added := effect(func(ctx context.Context, tx *sqlstore.Tx, f *queuestore.Finished) error {
			if _, err := tx.Exec(ctx, `insert into delivery_jobs (name, leased_until) values ($1, $2)`,
				"effect", tx.Time(tx.Now)); err != nil {
				return err
			}
			all, err := counts(ctx, tx)
			if err != nil {
				return err
			}
			saw, ended, changes = fmt.Sprint(all), nil, f.Changes
			for _, a := range f.Ended {
				ended = append(ended, a.State)
			}
			if fails {
				return broken
			}
			return nil
		})
		s := newStore(db, added)
		d, key := enqueue(t, s)
		before := stored(t, s)
		outcome := &queuestore.Outcome{
			No: d.No, Blame: queuestore.Fault, Breaker: retry.Breaker{Failures: 1, Probes: 1, Cooldown: time.Minute},
			Written: true,
		}
		outcome.Key, outcome.Destination, outcome.Number, outcome.Took = key, d.ID, 1, time.Second
		outcome.State, outcome.Reason = queue.Dead, queue.Permanent
		outcome.Failure = &sqlstore.Failure{Category: handler.Remote, Text: "no"}
		outcome.Reference = handler.Reference{ID: "object"}
		finish := sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
			_, err := s.Finish(ctx, tx, []*queuestore.Outcome{outcome})
			return err
		}}

		const all = "map[attempts:1 dead_letters:1 health:1 jobs:1 written:1]"
		check := func() {
			t.Helper()
			if saw != all {
				t.Errorf("the effect saw %s, want %s", saw, all)
			}
			if len(changes) != 1 || changes[0].Verdict != queuestore.Opened {
				t.Errorf("the effect saw the changes of health %+v", changes)
			}
			if len(ended) != 1 || ended[0] != queue.Dead {
				t.Errorf("the effect saw the ends %v", ended)
			}
		}
		if err := s.Commit(t.Context(), finish); !errors.Is(err, broken) {
			t.Fatalf("the transaction ended with %v", err)
		}
		check()
		if after := stored(t, s); after != before {
			t.Errorf("after an effect that failed there is %s, and before there was %s", after, before)
		}
		fails = false
		if err := s.Commit(t.Context(), finish); err != nil {
			t.Fatal(err)
		}
		check()
		if after := stored(t, s); after != all {
			t.Errorf("stored is %s, want %s", after, all)
		}
	})
}

// An item that returns to the queue and is to be cancelled has ended for the effects.
func TestEffectsSeeWhatIsCancelledOnItsReturn(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var finished queuestore.Finished
		s := newStore(db,
			effect(func(_ context.Context, _ *sqlstore.Tx, f *queuestore.Finished) error {
				finished = *f
				return nil
			}))
		d, key := enqueue(t, s)
		testkit.Exec(t, db, fmt.Sprintf(`update delivery_queue set cancel = %d`, queue.Requested))
		o := &queuestore.Outcome{No: d.No, Delay: time.Minute, Charge: true}
		o.Key, o.Destination, o.State, o.Reason = key, d.ID, queue.Scheduled, queue.Backoff
		commit(t, s, func(ctx context.Context, tx *sqlstore.Tx) error {
			_, err := s.Finish(ctx, tx, []*queuestore.Outcome{o})
			return err
		})
		if len(finished.Applied) != 1 || !finished.Applied[0] || len(finished.Ended) != 1 ||
			finished.Ended[0].State != queue.Cancelled || finished.Ended[0].N != key.N {
			t.Errorf("the effect saw %+v", finished)
		}
	})
}

// newStore returns a store on a database of testkit.
func newStore(db *sql.DB, effects ...queuestore.Effect) *queuestore.Store {
	if testkit.IsSQLite(db) {
		n := sqlite.Native{}
		return queuestore.New(sqlstore.New(db, n, nil), n, effects...)
	}
	n := postgres.Native{}
	return queuestore.New(sqlstore.New(db, n, nil), n, effects...)
}

func commit(t *testing.T, s *queuestore.Store, do func(ctx context.Context, tx *sqlstore.Tx) error) {
	t.Helper()
	if err := s.Commit(t.Context(), sqlstore.Commit{Do: do}); err != nil {
		t.Fatal(err)
	}
}
