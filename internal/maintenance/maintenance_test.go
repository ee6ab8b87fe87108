package maintenance_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/maintenance"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// world is a database, a clock and what the chores on it did.
type world struct {
	store *sqlstore.Store

	mu   sync.Mutex
	now  time.Time
	done []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := sql.Open("sqlite", dbtest.SQLite(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	svc, err := delivery.New(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := &world{now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.store = sqlstore.New(db, sqlite.Dialect{}, func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	})
	return w
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, what)
}

// did returns what was done since the last call.
func (w *world) did() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := strings.Join(w.done, " ")
	w.done = nil
	return done
}

func (w *world) chore(name string, every time.Duration) maintenance.Chore {
	return maintenance.Chore{Name: name, Every: every, Do: func(context.Context, *maintenance.Run) error {
		w.note(name)
		return nil
	}}
}

func (w *world) runner(chores ...maintenance.Chore) *maintenance.Runner {
	r := maintenance.NewRunner(w.store, slog.New(slog.DiscardHandler), nil)
	r.Add(chores...)
	return r
}

func due(t *testing.T, r *maintenance.Runner) maintenance.Report {
	t.Helper()
	report, err := r.Due(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// A chore is done once in its interval, by one of several processes, in the order of Add.
func TestChoresAreDoneWhenTheyAreDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	unwanted := w.chore("unwanted", time.Minute)
	unwanted.Wanted = func() bool { return false }
	chores := []maintenance.Chore{w.chore("minute", time.Minute), unwanted, w.chore("hour", time.Hour), w.chore("always", 0)}
	a, b := w.runner(chores...), w.runner(chores...)
	for _, step := range []struct {
		after time.Duration
		want  string
	}{
		{0, "minute hour always always"},
		{59 * time.Second, "always always"},
		{time.Second, "minute always always"},
		{time.Hour, "minute hour always always"},
	} {
		w.advance(step.after)
		due(t, a)
		due(t, b)
		if got := w.did(); got != step.want {
			t.Errorf("after %v more: %q, want %q", step.after, got, step.want)
		}
	}
	unwantedElsewhere := w.runner(w.chore("unwanted", time.Minute))
	due(t, unwantedElsewhere)
	if got := w.did(); got != "unwanted" {
		t.Errorf("a process that has no use for a chore kept it from another: %q", got)
	}
}

// What failed on the database is tried again when its lease ends; the others are done all the same,
// and all errors come out.
func TestFailedChoresAreTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	errA, errB := errors.New("a"), errors.New("b")
	failing := func(name string, network bool, err error) maintenance.Chore {
		return maintenance.Chore{Name: name, Every: time.Hour, Limit: time.Minute, Network: network,
			Do: func(context.Context, *maintenance.Run) error {
				w.note(name)
				return err
			}}
	}
	r := w.runner(failing("database", false, errA), w.chore("other", time.Minute), failing("network", true, errB))
	if _, err := r.Due(t.Context()); !errors.Is(err, errA) || !errors.Is(err, errB) {
		t.Errorf("the errors are %v", err)
	}
	if got := w.did(); got != "database other network" {
		t.Errorf("done: %q", got)
	}
	w.advance(time.Minute)
	if _, err := r.Due(t.Context()); !errors.Is(err, errA) {
		t.Error(err)
	}
	if got := w.did(); got != "database other" {
		t.Errorf("a minute later: %q", got)
	}
}

// A chore that waits for others keeps none from being done, and ends at its limit.
func TestSilentEndpointHoldsUpItsOwnChoreAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release := make(chan struct{})
	others := make(chan string, 2)
	silent := maintenance.Chore{Name: "silent", Every: time.Hour, Limit: 50 * time.Millisecond, Network: true,
		Do: func(ctx context.Context, _ *maintenance.Run) error {
			<-ctx.Done()
			close(release)
			return ctx.Err()
		}}
	told := func(name string, network bool) maintenance.Chore {
		return maintenance.Chore{Name: name, Every: time.Hour, Network: network, Do: func(context.Context, *maintenance.Run) error {
			others <- name
			return nil
		}}
	}
	r := w.runner(silent, told("database", false), told("network", true))
	_, err := r.Due(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the silent chore ended with %v", err)
	}
	<-release
	got := []string{<-others, <-others}
	if slices.Sort(got); !slices.Equal(got, []string{"database", "network"}) {
		t.Errorf("done besides: %q", got)
	}
}

// While one chore waits, Start goes on with the others, and it ends with its context.
func TestStartRunsNetworkChoresApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	waiting, done := make(chan struct{}), make(chan struct{})
	r := w.runner(
		maintenance.Chore{Name: "silent", Every: time.Hour, Network: true, Do: func(ctx context.Context, _ *maintenance.Run) error {
			close(waiting)
			<-ctx.Done()
			return ctx.Err()
		}},
		maintenance.Chore{Name: "database", Every: time.Hour, Do: func(context.Context, *maintenance.Run) error {
			<-waiting // it is done while the other one waits
			close(done)
			return nil
		}},
	)
	wait := r.Start(ctx)
	<-done
	cancel()
	wait()
}

// Batches goes on until a step says that it is done, and stops at an error. A step that the
// database has run again counts once. Count is safe for many goroutines.
func TestBatchesAndCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	steps, runs := 0, 0
	broken := errors.New("broken")
	r := w.runner(maintenance.Chore{Name: "batches", Every: time.Hour, Do: func(ctx context.Context, r *maintenance.Run) error {
		if err := r.Batches(ctx, func(context.Context, *sqlstore.Tx) (maintenance.Batch, error) {
			if runs++; runs == 2 {
				return maintenance.Batch{Done: true, Then: func() { t.Error("a run without effect counts") }}, sqlstore.ErrConcurrent
			}
			return maintenance.Batch{Done: steps == 2, Then: func() { steps++ }}, nil
		}); err != nil {
			return err
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { r.Count(&r.Report.Removals, 2) })
		}
		wg.Wait()
		err := r.Batches(ctx, func(context.Context, *sqlstore.Tx) (maintenance.Batch, error) {
			return maintenance.Batch{}, broken
		})
		if !errors.Is(err, broken) {
			t.Errorf("an error of a step gave %v", err)
		}
		return nil
	}})
	if report := due(t, r); steps != 3 || runs != 4 || report.Removals != 20 {
		t.Errorf("%d steps in %d runs, %d removals", steps, runs, report.Removals)
	}
}
