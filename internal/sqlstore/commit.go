package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Commit is a transaction that writes, and how to find out whether it took effect.
//
// The connection can break on COMMIT, and then nobody has heard whether the changes are there.
// Committed looks, in a transaction of its own that only reads. If they are there, the commit has
// succeeded; if not, Do runs again. If Committed fails as well, the commit ends in
// [ErrOutcomeUnknown].
type Commit struct {
	// Do makes the changes. It runs several times: each time in a new transaction, and only after
	// the one before was rolled back or did not take effect. So every run has to set everything
	// that it leaves to its caller, and Do must have no other effect outside of the transaction.
	Do func(ctx context.Context, tx *Tx) error
	// Committed reports whether the last run of Do took effect. It may look at what that run left.
	// For changes that do no harm a second time it is [Again]. If it is nil, the commit ends in the
	// error of COMMIT.
	Committed func(ctx context.Context, tx *Tx) (bool, error)
}

// Again is the [Commit.Committed] of changes that do no harm a second time: it has them made again.
func Again(context.Context, *Tx) (bool, error) { return false, nil }

var (
	// ErrConcurrent reports that a row was changed between two looks of one statement. The
	// transaction runs again.
	ErrConcurrent = errors.New("sqlstore: changed by another transaction")
	// ErrOutcomeUnknown reports that the connection broke on COMMIT, and that looking whether it
	// took effect failed as well.
	ErrOutcomeUnknown = errors.New("sqlstore: it is not known whether the transaction was committed")
)

// Commit makes changes that survive a crash of the database.
func (s *Store) Commit(ctx context.Context, c Commit) error { return s.run(ctx, Writing, c) }

// CommitShared makes the changes of several callers at once. None of them has to wait for a lock
// that only another one needs: a wait of more than a moment is an error.
func (s *Store) CommitShared(ctx context.Context, c Commit) error { return s.run(ctx, Combining, c) }

// CommitRelaxed makes changes that a crash of the database may lose, because COMMIT does not wait
// for the disk: leases, statistics, signs of life. A lease that is lost leaves its item ready, with
// the fence that the worker knows.
func (s *Store) CommitRelaxed(ctx context.Context, do func(ctx context.Context, tx *Tx) error) error {
	return s.run(ctx, Relaxed, Commit{Do: do})
}

// Read runs fn in a transaction that is rolled back. fn runs again as [Commit.Do] does.
func (s *Store) Read(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	return s.run(ctx, Reading, Commit{Do: fn})
}

const (
	maxRetries = 10
	firstPause = 2 * time.Millisecond
)

func (s *Store) run(ctx context.Context, access Access, c Commit) error {
	pause := firstPause
	for i := 0; ; i++ {
		committing, err := s.once(ctx, access, c.Do)
		if err == nil {
			return nil
		}
		if s.MissingTable(err) {
			return fmt.Errorf("%w (%w)", ErrNotMigrated, err)
		}
		if committing {
			var again bool
			if again, err = s.outcome(ctx, c, err); !again || i == maxRetries || ctx.Err() != nil {
				return err
			}
			continue
		}
		if i == maxRetries || !s.Retryable(err) && !errors.Is(err, ErrConcurrent) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// once runs do in a transaction. committing reports that err is of COMMIT.
func (s *Store) once(
	ctx context.Context, access Access, do func(context.Context, *Tx) error,
) (committing bool, err error) {
	if access != Reading && s.writer != nil {
		select {
		case s.writer <- struct{}{}:
			defer func() { <-s.writer }()
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	tx, now, err := s.Begin(ctx, s.DB, access)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do, and after an error nothing to add
	if s.clock != nil {
		now = s.clock()
	} else {
		s.skew.Store(int64(now.Sub(s.Local())))
	}
	now = now.UTC().Truncate(time.Microsecond) // as it will be read back
	if err := do(ctx, &Tx{Execer: tx, Syntax: s.Dialect, Now: now}); err != nil {
		return false, err
	}
	if access == Reading {
		return false, nil
	}
	return true, tx.Commit()
}

// outcome finds out what became of a COMMIT that returned broken. It returns nil if the changes are
// there, and again if they are not.
func (s *Store) outcome(ctx context.Context, c Commit, broken error) (again bool, err error) {
	if c.Committed == nil {
		return false, broken
	}
	var done bool
	err = s.Read(context.WithoutCancel(ctx), func(ctx context.Context, tx *Tx) (err error) {
		done, err = c.Committed(ctx, tx)
		return err
	})
	switch {
	case err != nil:
		return false, fmt.Errorf("%w: %w", ErrOutcomeUnknown, errors.Join(broken, err))
	case done:
		return false, nil
	}
	return true, broken
}
