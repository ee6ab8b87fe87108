package engine

import (
	"time"

	"github.com/deliverykit/delivery/handler"
)

// graceAfterCancel is how long handlers get to notice that their context has ended.
const graceAfterCancel = 5 * time.Second

// stop ends the pass and waits for its goroutines, except for handlers that ignore their context.
// With release, jobs that wait for a worker go back to the queue, and attempts have the shutdown
// timeout.
func (p *pipeline) stop(release bool) {
	p.stopping.Store(release)
	p.workers.close(release)
	p.jobs.close(release)
	done := make(chan struct{})
	go func() {
		p.workers.group.Wait()
		close(p.done)
		p.finishing.Wait()
		close(done)
	}()
	if release {
		p.endAttempts(done)
	} else {
		<-done
	}
	select {
	case <-done:
	default:
		p.leaveStuck()
	}
	close(p.stopBeat)
	p.beating.Wait()
	p.e.flush(p.base)
}

// endAttempts waits for the attempts in flight as long as the shutdown timeout, then ends them.
func (p *pipeline) endAttempts(done <-chan struct{}) {
	timeout := time.NewTimer(p.e.Policy().ShutdownTimeout)
	defer timeout.Stop()
	select {
	case <-done:
		return
	case <-timeout.C:
	}
	p.flights.endAll(handler.ErrShutdown)
	timeout.Reset(graceAfterCancel)
	select {
	case <-done:
	case <-timeout.C:
	}
}

// leaveStuck waits until the outcomes of all attempts that have ended are written.
func (p *pipeline) leaveStuck() {
	p.e.Logger.Error(
		"delivery: handlers ignore that their context has ended; their items are attempted again when the leases end",
		"items", p.room.held.Load())
	for {
		_, running := p.jobs.load()
		if p.room.held.Load() <= int64(running) {
			return
		}
		<-p.room.freed
	}
}
