package delivery

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/maintenance"
)

// Pass is what one ProcessDue did. A failed attempt is not an error: it is counted here and
// recorded with its item.
type Pass struct {
	Attempts, Delivered, Retrying, Dead int
	// Next is when something falls due next, zero if nothing waits for a time: for a host's own
	// timer.
	Next time.Time
}

// ProcessDue attempts what is due and returns when nothing is: for a host's own loop, cron or
// ticker. Overlapping calls, in any number of processes, share the work. Items that a destination's
// rate holds back are not due: Pass.Next says when they are. When ctx ends it stops as
// [DeliveryService.Run] does, and returns ctx's error. A host that calls it also calls
// [DeliveryService.Maintain], once a minute or so.
func (s *DeliveryService) ProcessDue(ctx context.Context) (Pass, error) {
	ctx, done, err := s.begin(ctx, false)
	if err != nil {
		return Pass{}, err
	}
	defer done()
	counts, err := s.engine.Pass(ctx)
	pass := Pass{
		Attempts: int(counts.Attempts.Load()), Delivered: int(counts.Delivered.Load()),
		Retrying: int(counts.Retrying.Load()), Dead: int(counts.Dead.Load()),
	}
	if err != nil {
		return pass, err
	}
	pass.Next, err = s.engine.Next(ctx)
	if at := counts.GateAt; !at.IsZero() && (pass.Next.IsZero() || at.Before(pass.Next)) {
		pass.Next = at.UTC()
	}
	return pass, err
}

// Run processes and maintains until ctx ends or Close is called. Then it starts nothing more, waits
// for the attempts in flight up to the shutdown timeout, releases the rest without charging an
// attempt, and returns nil. It needs no leader: any number of processes may run. It returns an
// error only at the start: [ErrRunning], [ErrClosed], [ErrNotMigrated] or a database that does not
// answer. Later errors are logged, and what failed is tried again.
func (s *DeliveryService) Run(ctx context.Context) error {
	ctx, done, err := s.begin(ctx, true)
	if err != nil {
		return err
	}
	defer done()
	if _, err := s.engine.Next(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	wait := s.chores.Start(ctx)
	s.engine.Run(ctx)
	wait()
	return nil
}

// Wake makes Run look for items at once: call it after the commit of a DeliverTx to be faster than
// the next poll.
func (s *DeliveryService) Wake() { s.engine.Wake() }

// Chores is what one Maintain did.
type Chores struct {
	KeysExpired     int // idempotency keys
	PayloadsDropped int // that no delivery uses: staged in vain a day ago, or their deliveries have expired
	OrphansDropped  int // objects in the payload store that belong to no payload; looked for once an hour

	DeliveriesExpired      int // by WithRetention, once an hour
	Removals               int // of what deliveries wrote, by handlers that are a handler.Remover, once an hour
	RemovalsFailed         int // they are tried again
	SecurityEventsExpired  int // after 180 days
	ConfigsResealed        int // that an older key had sealed, now with the primary key
	DestinationsChecked    int // by a scheduled connection test, see WithHealthChecks
	DestinationsDrained    int // deleted, because nothing waits for them any more
	DestinationsMaintained int // by handlers that are a handler.Maintainer, once an hour
}

// Maintain does the chores that are due: call it once a minute or so besides ProcessDue; Run does.
// Of several processes that call it, one does each chore. Chores that wait for a destination, a
// payload store or a key service come last and run side by side, each for at most five minutes.
func (s *DeliveryService) Maintain(ctx context.Context) (Chores, error) {
	ctx, done, err := s.begin(ctx, false)
	if err != nil {
		return Chores{}, err
	}
	defer done()
	var report maintenance.Report
	report, err = s.chores.Due(ctx)
	return Chores(report), err
}
