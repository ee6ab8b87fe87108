package engine

import (
	"context"
	"time"
)

// claimUntilIdle claims until nothing is due and nothing is held: as long as quick looks find something by these.
func (p *pipeline) claimUntilIdle(ctx context.Context) error {
	exact := false
	for swept := time.Now(); ctx.Err() == nil; {
		idle := p.room.held.Load() == 0
		n, more, err := p.claim(ctx, exact)
		if err != nil {
			return stopped(ctx, err)
		}
		exact = exact && n == 0
		if (n > 0 || more) && time.Since(swept) < busyPoll {
			continue
		}
		moved, _, err := p.e.sweep(ctx, p.counts.add, true)
		swept = time.Now()
		switch {
		case err != nil:
			return stopped(ctx, err)
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

// stopped is err, unless it comes of ctx having ended.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the caller reports ctx's own error
	}
	return err
}

const (
	busyPoll   = 100 * time.Millisecond
	errorPause = time.Second
)

// claimForever claims until ctx ends. While there is something to do it looks every 100 ms for what other processes have
// accepted, and more seldom the longer there is not; for what falls due it looks when it does. Errors of the database are
// logged and tried again.
func (p *pipeline) claimForever(ctx context.Context) {
	poll := busyPoll
	var sweepAt, dueAt time.Time
	var failing bool
	for ctx.Err() == nil {
		var n, moved int
		var more bool
		var err error
		if now := time.Now(); !now.Before(sweepAt) || !dueAt.IsZero() && !now.Before(dueAt) {
			var until time.Duration
			moved, until, err = p.e.sweep(ctx, p.counts.add, false)
			sweepAt, dueAt = time.Now().Add(busyPoll), time.Time{}
			if until > 0 { // else it is due, and held by a worker
				dueAt = time.Now().Add(until)
			}
		}
		if err == nil {
			n, more, err = p.claim(ctx, false)
		}
		var pause time.Duration
		switch {
		case err != nil:
			if !failing && ctx.Err() == nil {
				p.e.Logger.ErrorContext(ctx, "delivery: the queue cannot be read; trying again", "error", err)
			}
			failing, pause = true, errorPause
		case n > 0 || more || moved > 0:
			failing, poll = false, busyPoll
			continue
		default:
			failing, pause = false, poll
			interval := p.e.Policy().PollInterval
			poll = min(poll*5/4, interval)
			if p.room.held.Load() > 0 {
				poll = min(busyPoll, interval)
			}
			for _, at := range []time.Time{dueAt, p.gateAt} {
				if !at.IsZero() {
					pause = min(pause, time.Until(at))
				}
			}
		}
		timer := time.NewTimer(pause)
		p.wait(ctx, timer.C)
		timer.Stop()
	}
}

// wait returns when there may be something to claim, or when ctx has ended.
func (p *pipeline) wait(ctx context.Context, timer <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-p.room.freed:
	case <-p.e.wake:
	case <-timer:
	}
}
