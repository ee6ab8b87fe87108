package engine

import (
	"context"
	"time"
)

const (
	busyPoll   = 100 * time.Millisecond
	errorPause = time.Second
)

// claimUntilIdle claims until nothing is due and nothing is held. It takes quick looks as long as
// these find something, and exact ones before it ends.
func (p *pipeline) claimUntilIdle(ctx context.Context) error {
	exact := false
	for swept := time.Now(); ctx.Err() == nil; {
		idle := p.room.held.Load() == 0
		n, more, err := p.claim(ctx, exact)
		if err != nil {
			return unlessEnded(ctx, err)
		}
		exact = exact && n == 0
		if (n > 0 || more) && time.Since(swept) < busyPoll {
			continue
		}
		moved, _, err := p.e.sweep(ctx, p.counts.add, true)
		swept = time.Now()
		switch {
		case err != nil:
			return unlessEnded(ctx, err)
		case n > 0 || more || moved > 0:
		case !exact:
			exact = true
		case idle:
			return nil
		case p.room.held.Load() > 0:
			p.wait(ctx, nil)
		}
	}
	return nil
}

// unlessEnded is err, or nil once ctx has ended: the caller reports ctx's own error.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the caller reports ctx's own error
	}
	return err
}

// claimForever claims until ctx ends. Errors of the database are logged and tried again.
func (p *pipeline) claimForever(ctx context.Context) {
	l := loop{p: p, poll: busyPoll}
	for failing := false; ctx.Err() == nil; {
		busy, err := l.turn(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			p.e.Logger.ErrorContext(ctx, "delivery: the queue cannot be read; trying again", "error", err)
		}
		failing = err != nil
		if busy {
			continue
		}
		pause := errorPause
		if !failing {
			pause = l.pause()
		}
		timer := time.NewTimer(pause)
		p.wait(ctx, timer.C)
		timer.Stop()
	}
}

// loop decides when a running pass looks. While it finds something it goes on at once. Otherwise it
// looks every 100 ms for items that other processes have accepted, and less often the longer it
// finds none. It looks for items that fall due when they do.
type loop struct {
	p       *pipeline
	poll    time.Duration
	sweepAt time.Time // the next sweep, unless something falls due before
	dueAt   time.Time // when something falls due; zero if nothing does, or a worker holds it
}

// turn sweeps if it is time to, then claims. It reports whether it found anything.
func (l *loop) turn(ctx context.Context) (busy bool, err error) {
	moved := 0
	if now := time.Now(); !now.Before(l.sweepAt) || !l.dueAt.IsZero() && !now.Before(l.dueAt) {
		var until time.Duration
		moved, until, err = l.p.e.sweep(ctx, l.p.counts.add, false)
		l.sweepAt, l.dueAt = time.Now().Add(busyPoll), time.Time{}
		if until > 0 {
			l.dueAt = time.Now().Add(until)
		}
	}
	if err != nil {
		return false, err
	}
	n, more, err := l.p.claim(ctx, false)
	if err != nil {
		return false, err
	}
	if busy = n > 0 || more || moved > 0; busy {
		l.poll = busyPoll
	}
	return busy, nil
}

// pause returns how long to wait after a turn that found nothing.
func (l *loop) pause() time.Duration {
	pause := l.poll
	interval := l.p.e.Policy().PollInterval
	l.poll = min(l.poll*5/4, interval)
	if l.p.room.held.Load() > 0 {
		l.poll = min(busyPoll, interval)
	}
	for _, at := range []time.Time{l.dueAt, l.p.gateAt} {
		if !at.IsZero() {
			pause = min(pause, time.Until(at))
		}
	}
	return pause
}

// wait returns when there may be something to claim, when timer fires, or when ctx ends.
func (p *pipeline) wait(ctx context.Context, timer <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-p.room.freed:
	case <-p.e.wake:
	case <-timer:
	}
}
