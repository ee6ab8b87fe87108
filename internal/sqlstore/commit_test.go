package sqlstore_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

var (
	errLost   = errors.New("lost against another transaction")
	errBroken = errors.New("connection broken")
	errOther  = errors.New("other")
)

// fake is a database whose COMMITs return errors in turn.
type fake struct {
	sqlstore.Dialect
	commits []error
}

func (f *fake) SingleWriter() bool       { return false }
func (f *fake) Retryable(err error) bool { return errors.Is(err, errLost) }
func (f *fake) MissingTable(error) bool  { return false }

func (f *fake) Begin(context.Context, sqlstore.DB, sqlstore.Access) (sqlstore.Transaction, time.Time, error) {
	return &fakeTransaction{f: f}, time.Now(), nil
}

type fakeTransaction struct {
	sqlstore.Transaction
	f *fake
}

func (t *fakeTransaction) Rollback() error { return nil }

func (t *fakeTransaction) Commit() error {
	if len(t.f.commits) == 0 {
		return nil
	}
	err := t.f.commits[0]
	t.f.commits = t.f.commits[1:]
	return err
}

// How often a transaction runs, and how it ends, by what becomes of it.
func TestCommit(t *testing.T) {
	t.Parallel()
	settled := func(done bool, err error) func(context.Context, *sqlstore.Tx) (bool, error) {
		return func(context.Context, *sqlstore.Tx) (bool, error) { return done, err }
	}
	always := func(err error) []error {
		all := make([]error, 20)
		for i := range all {
			all[i] = err
		}
		return all
	}
	broken, unknown := []error{errBroken}, sqlstore.ErrOutcomeUnknown
	for name, c := range map[string]struct {
		runs      []error // of Do, in turn; then nil
		commits   []error
		committed func(context.Context, *sqlstore.Tx) (bool, error)
		want      error
		wantRuns  int
	}{
		"committed at once":          {wantRuns: 1},
		"lost twice":                 {runs: []error{errLost, errLost}, wantRuns: 3},
		"changed between two looks":  {runs: []error{sqlstore.ErrConcurrent}, wantRuns: 2},
		"lost all the time":          {runs: always(errLost), want: errLost, wantRuns: 11},
		"failed":                     {runs: []error{errOther}, want: errOther, wantRuns: 1},
		"broken, nobody can tell":    {commits: broken, want: errBroken, wantRuns: 1},
		"broken, took effect":        {commits: broken, committed: settled(true, nil), wantRuns: 1},
		"broken, did not":            {commits: broken, committed: sqlstore.Again, wantRuns: 2},
		"broken all the time":        {commits: always(errBroken), committed: sqlstore.Again, want: errBroken, wantRuns: 11},
		"broken, as is the look":     {commits: broken, committed: settled(false, errOther), want: unknown, wantRuns: 1},
		"broken, look not committed": {commits: broken, committed: settled(true, errOther), want: unknown, wantRuns: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := sqlstore.New(nil, &fake{commits: c.commits}, nil)
				runs := 0
				err := s.Commit(t.Context(), sqlstore.Commit{
					Do: func(context.Context, *sqlstore.Tx) error {
						if runs++; runs <= len(c.runs) {
							return c.runs[runs-1]
						}
						return nil
					},
					Committed: c.committed,
				})
				if !errors.Is(err, c.want) || runs != c.wantRuns {
					t.Errorf("%v after %d runs, want %v after %d", err, runs, c.want, c.wantRuns)
				}
				if errors.Is(err, unknown) && (!errors.Is(err, errBroken) || !errors.Is(err, errOther)) {
					t.Errorf("%v does not say what broke, and why the look at it failed", err)
				}
			})
		})
	}
}

// Once the caller has gone, a transaction that did not take effect is not run again.
func TestCommitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := sqlstore.New(nil, &fake{commits: []error{errBroken}}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	err := s.Commit(ctx, sqlstore.Commit{
		Do: func(context.Context, *sqlstore.Tx) error {
			runs++
			return nil
		},
		Committed: func(ctx context.Context, _ *sqlstore.Tx) (bool, error) {
			cancel()
			return false, ctx.Err() // whether it took effect is found out all the same
		},
	})
	if !errors.Is(err, errBroken) || errors.Is(err, sqlstore.ErrOutcomeUnknown) || runs != 1 {
		t.Errorf("%v after %d runs", err, runs)
	}
}
