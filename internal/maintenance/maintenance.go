// Package maintenance does what has to be done now and then: it expires, collects, tests and
// removes. [Runner] runs chores. The other files of this package have the chores, each with the
// statements that it alone runs. A subject of its own (alerts, links) brings its chores and adds
// them to the Runner.
//
// Chores that work on the database alone run one after another. Chores that wait for others (a
// destination, a payload store, a key management service) run side by side, so that a silent
// endpoint holds up nothing but its own chore. Of several processes that call [Runner.Due], one
// does each chore.
package maintenance

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/deliverykit/delivery/internal/observe"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Chore is something to be done now and then.
type Chore struct {
	Name    string                                  // names its row in delivery_jobs; it never changes
	Every   time.Duration                           // 0: at every call and in each process, without a lease
	Limit   time.Duration                           // its lease and, with Network, its time limit. Default: 5 min
	Network bool                                    // it waits for others: it runs beside the rest, within Limit
	Wanted  func() bool                             // whether this process has anything to do; nil: always
	Do      func(ctx context.Context, r *Run) error // may be called again after an error
}

const (
	defaultLimit = 5 * time.Minute
	batchSize    = 500 // rows that one transaction of a chore removes
	pageSize     = 100 // rows that one transaction of a chore reads
)

// Report counts what chores did.
type Report struct {
	KeysExpired     int
	PayloadsDropped int
	OrphansDropped  int

	DeliveriesExpired      int
	Removals               int
	RemovalsFailed         int
	SecurityEventsExpired  int
	ConfigsResealed        int
	DestinationsChecked    int
	DestinationsDrained    int
	DestinationsMaintained int
}

// Runner runs chores. Add is called before the others; these may be called by many goroutines at
// once.
type Runner struct {
	store    *sqlstore.Store
	logger   *slog.Logger
	observer observe.Observer // nil: none
	database []Chore
	network  []Chore
}

// NewRunner returns a Runner without chores. The observer may be nil.
func NewRunner(store *sqlstore.Store, logger *slog.Logger, observer observe.Observer) *Runner {
	return &Runner{store: store, logger: logger, observer: observer}
}

// Add adds chores. Those on the database are run in the order in which they were added.
func (r *Runner) Add(chores ...Chore) {
	for _, c := range chores {
		if c.Limit == 0 {
			c.Limit = defaultLimit
		}
		if c.Network {
			r.network = append(r.network, c)
		} else {
			r.database = append(r.database, c)
		}
	}
}

// Due does the chores that are due, those on the database first, and returns when they are done.
// The errors of all are joined.
func (r *Runner) Due(ctx context.Context) (Report, error) {
	var report Report
	var mu sync.Mutex
	errs := make([]error, 1+len(r.network))
	errs[0] = r.inTurn(ctx, &report, &mu)
	var wg sync.WaitGroup
	for i, c := range r.network {
		wg.Go(func() { errs[1+i] = r.do(ctx, c, &report, &mu) })
	}
	wg.Wait()
	return report, errors.Join(errs...)
}

func (r *Runner) inTurn(ctx context.Context, report *Report, mu *sync.Mutex) error {
	errs := make([]error, len(r.database))
	for i, c := range r.database {
		errs[i] = r.do(ctx, c, report, mu)
	}
	return errors.Join(errs...)
}

// every is how often Run looks for chores that are due.
const every = time.Minute

// Start has goroutines of its own do what is due once a minute until ctx ends. A chore that waits
// for others holds up none but itself. wait returns when all of them have ended.
func (r *Runner) Start(ctx context.Context) (wait func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		r.forever(ctx, func() error { return r.inTurn(ctx, new(Report), new(sync.Mutex)) })
	})
	for _, c := range r.network {
		wg.Go(func() {
			r.forever(ctx, func() error { return r.do(ctx, c, new(Report), new(sync.Mutex)) })
		})
	}
	return wg.Wait
}

func (r *Runner) forever(ctx context.Context, do func() error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := do(); err != nil && ctx.Err() == nil {
			r.logger.ErrorContext(ctx, "delivery: maintenance failed; it is tried again in a minute", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// do does a chore if it is due and no other process is at it.
func (r *Runner) do(ctx context.Context, c Chore, report *Report, mu *sync.Mutex) error {
	if c.Wanted != nil && !c.Wanted() {
		return nil
	}
	if c.Every > 0 {
		leased := false
		err := r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			leased, err = leaseJob(ctx, tx, c.Name, c.Every, c.Limit)
			return err
		}})
		if err != nil || !leased {
			return err
		}
	}
	run := &Run{name: c.Name, store: r.store, logger: r.logger, mu: mu, Report: report}
	within, cancel := ctx, context.CancelFunc(func() {})
	if c.Network {
		within, cancel = context.WithTimeout(ctx, c.Limit)
	}
	defer cancel()
	err := r.observed(within, c, run)
	if c.Every == 0 || err != nil && !c.Network { // what failed on the database is tried again when the lease ends
		return err
	}
	return errors.Join(err, r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		return finishJob(ctx, tx, c.Name)
	}, Committed: sqlstore.Again}))
}

// observed runs a chore, and reports it to the observer.
func (r *Runner) observed(ctx context.Context, c Chore, run *Run) (err error) {
	if r.observer == nil {
		return c.Do(ctx, run)
	}
	ctx, end := r.observer.Chore(ctx, c.Name)
	err = c.Do(ctx, run)
	if end != nil {
		end(err)
	}
	return err
}

// Run is one run of a chore.
type Run struct {
	Report *Report // shared by the chores of a call: written by Count only

	name   string // of the chore
	store  *sqlstore.Store
	logger *slog.Logger
	mu     *sync.Mutex
}

// Count adds n to a field of the Report.
func (r *Run) Count(field *int, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*field += n
}

// Batch is the result of one transaction of a chore.
type Batch struct {
	Done bool   // nothing is left to do
	Then func() // called once the transaction has committed; nil: nothing
}

// Batches runs step, each time in a transaction of its own, until it is done. A step can run again
// if its transaction did not take effect, so what it leaves to the next one, and what it counts, it
// sets in Batch.Then.
func (r *Run) Batches(ctx context.Context, step func(ctx context.Context, tx *sqlstore.Tx) (Batch, error)) error {
	for {
		var b Batch
		err := r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			b, err = step(ctx, tx)
			return err
		}, Committed: sqlstore.Again})
		if err != nil {
			return err
		}
		if b.Then != nil {
			b.Then()
		}
		if b.Done {
			return nil
		}
	}
}

// Pages calls do with what page returns, again and again from after the row that it saw last, until
// a page is short or ctx ends. do handles its own errors.
func (r *Run) Pages(
	ctx context.Context,
	page func(ctx context.Context, tx *sqlstore.Tx, after int64) ([]*sqlstore.DestinationRow, error),
	do func(ctx context.Context, d *sqlstore.DestinationRow),
) error {
	for after, more := int64(0), true; more; {
		var rows []*sqlstore.DestinationRow
		err := r.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			rows, err = page(ctx, tx, after)
			return err
		})
		if err != nil {
			return err
		}
		for _, d := range rows {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			after = d.No
			do(ctx, d)
		}
		more = len(rows) == pageSize
	}
	return nil
}

// EachDestination calls do for each destination of a type, of all organizations. A failure for one
// is logged, and the others follow.
func (r *Run) EachDestination(
	ctx context.Context, typ string, do func(ctx context.Context, d *sqlstore.DestinationRow) error,
) error {
	return r.Pages(ctx, func(ctx context.Context, tx *sqlstore.Tx, after int64) ([]*sqlstore.DestinationRow, error) {
		return destinationsOfType(ctx, tx, typ, after, pageSize)
	}, func(ctx context.Context, d *sqlstore.DestinationRow) {
		if err := do(ctx, d); err != nil {
			r.logger.WarnContext(ctx, "delivery: a chore failed for a destination; it is tried again the next time",
				"chore", r.name, "organization", d.Organization, "destination", d.ID, "error", err)
		}
	})
}

// destinationsOfType lists destinations of a type of all organizations, by number after the given
// one: a system statement.
func destinationsOfType(
	ctx context.Context, tx *sqlstore.Tx, typ string, after int64, limit int,
) ([]*sqlstore.DestinationRow, error) {
	return tx.SelectDestinations(ctx, `where d.no > $1 and d.type = $2 and d.deleted_at is null
		order by d.no limit $3`, after, typ, limit)
}
