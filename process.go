package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/wiring"
)

// Pass is what one ProcessDue did. A failed attempt is no error: it is counted here and recorded with its item.
type Pass struct {
	Attempts, Delivered, Retrying, Dead int
	// Next is when something falls due next, zero if nothing waits for a time: for a host's own timer.
	Next time.Time
}

// ProcessDue attempts what is due and returns when nothing is: for a host's own loop, cron or ticker. Overlapping calls,
// in any number of processes, share the work. Items that a destination's rate holds back are not due: Pass.Next says when
// they are. When ctx ends it stops as Run does, and returns ctx's error. A host that
// calls it also calls Maintain, once a minute or so.
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

// Run processes and maintains until ctx ends or Close is called; then it starts nothing more, waits for the attempts in
// flight up to the shutdown timeout, releases the rest without charging an attempt, and returns nil. It needs no leader:
// any number of processes may run. An error is returned only at the start: ErrRunning, ErrClosed, ErrNotMigrated or a
// database that does not answer. Later ones are logged, and tried again.
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
	var maintenance sync.WaitGroup
	maintenance.Go(func() { s.maintainForever(ctx) })
	s.engine.Run(ctx)
	maintenance.Wait()
	return nil
}

// begin registers a call that Close is to end.
func (s *DeliveryService) begin(ctx context.Context, exclusive bool) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, nil, ErrClosed
	case exclusive && s.running:
		return nil, nil, ErrRunning
	}
	ctx, cancel := context.WithCancel(ctx)
	s.next++
	id := s.next
	s.cancel[id] = cancel
	s.calls.Add(1)
	s.running = s.running || exclusive
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.cancel, id)
		if exclusive {
			s.running = false
		}
		s.calls.Done()
	}, nil
}

// Wake makes Run look for items at once: after the commit of a DeliverTx, faster than the next poll.
func (s *DeliveryService) Wake() { s.engine.Wake() }

const maintainEvery = time.Minute

func (s *DeliveryService) maintainForever(ctx context.Context) {
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	for {
		if _, err := s.Maintain(ctx); err != nil && ctx.Err() == nil {
			s.settings.Logger.ErrorContext(ctx, "delivery: maintenance failed; it is tried again in a minute", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Chores is what one Maintain did.
type Chores struct {
	KeysExpired     int // idempotency keys
	PayloadsDropped int // used by no delivery: staged in vain a day ago, or their deliveries are expired
	OrphansDropped  int // objects in the payload store that belong to no payload, once an hour

	DeliveriesExpired      int // by WithRetention, once an hour
	Removals               int // of what deliveries wrote, by handlers that are a handler.Remover, once an hour
	RemovalsFailed         int // they are tried again
	SecurityEventsExpired  int // after 180 days
	ConfigsResealed        int // with the primary key, that an older one had sealed
	DestinationsChecked    int // by a scheduled connection test, see WithHealthChecks
	DestinationsDrained    int // deleted, now that nothing waits for them
	DestinationsMaintained int // by handlers that are a handler.Maintainer, once an hour
}

// Maintain does the chores that are due: call it once a minute or so beside ProcessDue; Run does. Of several processes
// that call it, one does each chore.
func (s *DeliveryService) Maintain(ctx context.Context) (Chores, error) {
	ctx, done, err := s.begin(ctx, false)
	if err != nil {
		return Chores{}, err
	}
	defer done()
	var chores Chores
	err = errors.Join(
		s.chore(ctx, "idempotency", 10*time.Minute, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			n, err := tx.ExpireKeys(ctx, batch)
			chores.KeysExpired += int(n)
			return n < batch, err
		}),
		s.chore(ctx, "statistics", time.Hour, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			n, err := tx.ExpireMinutes(ctx, tx.Now.Add(-s.settings.Retention.Statistics), batch)
			return n < batch, errors.Join(err, tx.ForgetWorkers(ctx, tx.Now.Add(-stagedLifetime)))
		}),
		s.retain(ctx, &chores),
		s.collect(ctx, &chores),
		s.collectOrphans(ctx, &chores),
		s.flushSecurity(ctx),
		s.chore(ctx, "security events", time.Hour, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			n, err := tx.ExpireSecurityEvents(ctx, tx.Now.Add(-securityLifetime), batch)
			chores.SecurityEventsExpired += int(n)
			return n < batch, err
		}),
		s.reseal(ctx, &chores),
		s.drain(ctx, &chores),
		s.check(ctx, &chores),
		s.upkeep(ctx, &chores),
		s.remove(ctx, &chores),
	)
	return chores, err
}

// upkeep has handlers clean up after their destinations, one after another, as far as the time of the lease goes.
func (s *DeliveryService) upkeep(ctx context.Context, chores *Chores) error {
	var errs []error
	for _, name := range s.typeNames() {
		t := s.settings.Types[name]
		if t.Upkeep == nil {
			continue
		}
		job := "upkeep of " + name
		leased, err := s.lease(ctx, job, time.Hour)
		if err != nil || !leased {
			errs = append(errs, err)
			continue
		}
		within, cancel := context.WithTimeout(ctx, choreLease)
		err = s.maintainType(within, t, chores)
		cancel()
		errs = append(errs, err, s.finishChore(ctx, job))
	}
	return errors.Join(errs...)
}

func (s *DeliveryService) maintainType(ctx context.Context, t *wiring.Type, chores *Chores) error {
	for after := int64(0); ; {
		var page []*sqlstore.Destination
		err := s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			page, err = tx.DestinationsOfType(ctx, t.Name, after, pageSize)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, d := range page {
			after = d.No
			if err := s.maintainOne(ctx, t, d); err != nil {
				s.settings.Logger.WarnContext(ctx, "delivery: the upkeep of a destination failed; it is tried again in an hour",
					"organization", d.Organization, "destination", d.ID, "type", d.Type, "error", err)
				continue
			}
			chores.DestinationsMaintained++
		}
	}
}

func (s *DeliveryService) maintainOne(ctx context.Context, t *wiring.Type, d *sqlstore.Destination) (err error) {
	config, err := engine.OpenConfig(ctx, s.settings.Keys, t, d)
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it panicked: %v", r)
		}
	}()
	return t.Upkeep.Maintain(ctx, &handler.MaintainRequest{Organization: d.Organization, DestinationID: d.ID, Config: config})
}

const (
	stagedLifetime = 24 * time.Hour
	choreLease     = 5 * time.Minute

	securityLifetime = 180 * 24 * time.Hour
	batch            = 500 // rows that one transaction of a chore removes
)

// retain removes deliveries that are older than the retention, organization by organization.
func (s *DeliveryService) retain(ctx context.Context, chores *Chores) error {
	keep := s.settings.Retention
	if keep.Deliveries == 0 {
		return nil
	}
	organization, after := "", ""
	return s.chore(ctx, "retention", time.Hour, func(ctx context.Context, tx *sqlstore.Tx) (done bool, err error) {
		if after == "" {
			if organization, err = tx.NextOrganization(ctx, organization); err != nil || organization == "" {
				return true, err
			}
		}
		n, next, err := tx.Retain(ctx, organization, after, tx.Now.Add(-keep.Deliveries), tx.Now.Add(-keep.DeadLetters), batch)
		if err != nil {
			return false, err
		}
		after = next
		chores.DeliveriesExpired += n
		return false, nil
	})
}

// chore runs step, each time in a transaction of its own, until it says that it is done, if the chore is due and no other
// process is at it.
func (s *DeliveryService) chore(ctx context.Context, name string, every time.Duration, step func(ctx context.Context, tx *sqlstore.Tx) (done bool, err error)) error {
	leased, err := s.lease(ctx, name, every)
	if err != nil || !leased {
		return err
	}
	for done := false; !done && err == nil; {
		err = s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			done, err = step(ctx, tx)
			return err
		}, sqlstore.Again)
	}
	if err != nil {
		return err
	}
	return s.finishChore(ctx, name)
}

func (s *DeliveryService) lease(ctx context.Context, name string, every time.Duration) (leased bool, err error) {
	err = s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		leased, err = tx.LeaseJob(ctx, name, every, choreLease)
		return err
	}, nil)
	return leased, err
}

func (s *DeliveryService) finishChore(ctx context.Context, name string) error {
	return s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error { return tx.FinishJob(ctx, name) }, sqlstore.Again)
}
