package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// pipeline is one running pass: the claimer's goroutine, workers, a finisher, a heartbeat and the
// statistics. The package comment says who owns a job when.
type pipeline struct {
	e      *Engine
	base   context.Context //nolint:containedctx // of attempts: not the host's, which ends before they do
	counts Counts
	gateAt time.Time // the claimer's own: when a rate lets more through, zero if none holds any back

	room    room
	flights flights
	jobs    *dispatcher
	workers workers

	done      chan *job      // from the workers to the finisher
	finishing sync.WaitGroup // the finisher
	stopBeat  chan struct{}  // closed to end the heartbeat and the statistics
	beating   sync.WaitGroup // the heartbeat and the statistics
	stopping  atomic.Bool    // workers release the jobs that they take
}

// newPipeline starts the finisher, the heartbeat and the statistics. The caller claims, then calls
// stop.
func (e *Engine) newPipeline(ctx context.Context) *pipeline {
	limit := 2 * e.Workers
	p := &pipeline{
		e: e, base: context.WithoutCancel(ctx), jobs: newDispatcher(e.Workers),
		flights: flights{jobs: map[*job]struct{}{}},
		done:    make(chan *job, maxHeld*limit), stopBeat: make(chan struct{}),
	}
	p.room = room{limit: limit, least: limit / 2, jobs: p.jobs, freed: make(chan struct{}, 1)}
	p.workers = workers{limit: e.Workers, jobs: p.jobs, serve: p.serve}
	p.finishing.Go(p.finish)
	p.beating.Go(p.heartbeat)
	p.beating.Go(p.statistics)
	return p
}

// claim fills the room there is. It returns how many items and destinations to load it found, and
// whether there are lanes that it did not look at. It waits until there is room for a large claim.
func (p *pipeline) claim(ctx context.Context, exact bool) (n int, more bool, err error) {
	if !p.room.wait(ctx) {
		return 0, false, nil
	}
	began := time.Now()
	got, err := p.e.claim(ctx, p.room.left(), p.jobs.waits, exact)
	if err != nil {
		return 0, false, err
	}
	p.e.observeClaim(ctx, len(got.jobs), began)
	p.gateAt = time.Time{}
	if got.wait > 0 {
		p.gateAt = p.e.Now().Add(got.wait)
	}
	p.start(got.jobs)
	if len(got.unknown) > 0 {
		err = p.e.load(ctx, got.unknown)
	}
	return len(got.jobs) + len(got.unknown), got.more, err
}

// start hands claimed jobs over to the workers.
func (p *pipeline) start(jobs []job) {
	if len(jobs) == 0 {
		return
	}
	p.room.hold(len(jobs))
	p.flights.add(jobs)
	p.jobs.put(jobs)
	p.workers.start()
}

// forget gives up jobs whose outcomes are written, or never will be.
func (p *pipeline) forget(batch []*job) {
	p.flights.remove(batch)
	p.room.give(len(batch))
}
