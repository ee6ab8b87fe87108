// Package engine moves items: it claims those that are ready, has handlers attempt them, and
// records the outcomes. It knows handlers only through package handler, and the database only
// through queuestore and sqlstore.
//
// # Who owns a job
//
// A pass is one run of [Engine.Run] or [Engine.Pass], a pipeline of four roles. A job is a claimed
// item on its way through it, and has one owner at a time:
//
//	claimer     claims as many items as there is room for, under one lease       claim.go, room.go
//	dispatcher  queues them by destination, so that no slow one takes all workers    dispatch.go
//	worker      takes one, calls its handler, sets its outcome               workers.go, attempt.go
//	(done)      the channel from the workers to the finisher; all that is held fits in
//	finisher    writes outcomes in batches, then forgets the jobs                    finisher.go
//
// The owner alone writes a job's fields, except for those that the lock of the flights guards. The
// heartbeat never owns a job: it looks at the flights under their lock, and ends an attempt by its
// context. An item whose fence has changed is no longer the job's, and its outcome is not applied.
// So an item is finished once, however many processes believe that they hold it.
//
// # Goroutines
//
//	claimer     the caller's goroutine, in claimUntilIdle or claimForever
//	workers     started as jobs wait for them; end when the dispatcher is closed and empty
//	finisher    started by newPipeline; ends when done is closed, after the last worker
//	heartbeat   started by newPipeline; ends last, when stopBeat is closed
//	statistics  likewise
//
// Pipeline.stop ends a pass in this order and waits, except for workers whose handler ignores its
// context. A handler that calls runtime.Goexit ends its worker; that hands the job on and starts
// another worker on its way out.
//
// # Locks
//
//	flights.mu      the jobs in flight; of a job: lease, cancel, cause, giveUp; all of a lease
//	dispatcher.mu   the queues of waiting jobs and the counts of running ones
//	workers.mu      the number of workers, and the timer that starts more
//	claimer.mu      rings, floors and looks of claims     held during a claim, with its transaction
//	sweeper.mu      looks and floor of sweeps             held during a sweep, with its transactions
//	targets.mu      destinations that are ready for use
//	tally.mu, presence.mu, broadcast.mu   the fields beside them
//
// Room, stopping, served and the progress of a job are atomics or channels. Order: claimer.mu or
// sweeper.mu first, then the database, then one of the others. Under workers.mu the dispatcher's
// lock is taken; under the others, none. Passes of a process may overlap. They share the Engine,
// which has claimer, sweeper, targets, tally, presence and broadcast, and nothing else.
//
// # What becomes of a lease
//
// A lease is one row for all items of a claim. The heartbeat prolongs it until no item is left.
//
//	finished    the batch with the last outcome of the lease also drops it (flights.last)
//	released    likewise, by outcomes that put items back: the pass stops before their attempt
//	abandoned   an attempt ignores its timeout for the time of a lease: the heartbeat moves its item
//	            to a lease that ends at once. The others keep theirs; its own outcome is void
//	crashed     the attempt plays a process that dies (settings.ErrCrash): the lease is marked lost
//	unwritten   outcomes could not be written for the time of a lease: it is marked lost
//	lost        it is neither prolonged nor dropped. The heartbeat ends the attempts under it, whose
//	            items go back. When it has run out, a sweep makes the others ready again, with one
//	            loss more, or finds none and drops it
//
// A process that dies leaves its leases to run out. An item that loses three goes to the dead
// letters, because it may be what kills the processes.
package engine
