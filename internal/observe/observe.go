// Package observe is the seam for telemetry. The service calls an [Observer] at five points, and
// links no telemetry library itself. Whoever wants metrics or traces implements Observer in a
// package above the root, and sets it with an option of that package:
//
//	func Option(o observe.Observer) delivery.Option {
//		return func(b *settings.Builder) error {
//			return b.Fix("telemetry", func(f *settings.Fixed) error { f.Observer = o; return nil })
//		}
//	}
//
// A service without an Observer does nothing for it but compare a pointer with nil.
package observe

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/queue"
)

// Observer is called with what the service does. Many goroutines call its methods at once, on the
// paths that the methods name. So a method must not block, must not call the service, and must not
// panic. What it is given is its own.
type Observer interface {
	// Accepted is called after a transaction has accepted deliveries of an organization, on the
	// goroutine of a caller. Concurrent calls of Deliver share a transaction, and one goroutine
	// makes the call for all of them; ctx is that goroutine's.
	Accepted(ctx context.Context, a Acceptance)

	// Claimed is called after each claim, also one that found nothing, on the goroutine that
	// claims.
	Claimed(ctx context.Context, c Claim)

	// Attempt is called before an attempt opens the payload and calls the handler, on a worker's
	// goroutine. The handler is given the context that Attempt returns, which must come from ctx.
	// end, if not nil, is called once on the same goroutine: when the outcome is known and before
	// it is recorded, also if the handler panics or ends its goroutine. The crashes that package
	// deliverytest plays have no end. An item that goes back or ends without a call of its handler
	// is not an attempt.
	Attempt(ctx context.Context, a Attempt) (_ context.Context, end func(Outcome))

	// Finished is called after a transaction has recorded outcomes, on the goroutine that writes
	// them: those of attempts, and those of items whose deadline passed or whose lease was lost.
	Finished(ctx context.Context, b Batch)

	// Chore is called before a chore of the maintenance runs in this process, on the goroutine that
	// runs it. The chore is given the context that Chore returns, which must come from ctx. end, if
	// not nil, is called once when the chore returns, with its error.
	Chore(ctx context.Context, name string) (_ context.Context, end func(error))
}

// Acceptance is what one transaction accepted for one organization.
type Acceptance struct {
	Organization string
	Deliveries   int  // new ones
	Items        int  // of these
	Duplicates   int  // requests that an idempotency key showed to be accepted before
	Uncommitted  bool // the transaction is the host's, which may still roll it back
}

// Claim is one claim.
type Claim struct {
	Items int
	Took  time.Duration
}

// Attempt is one attempt at an item.
type Attempt struct {
	Organization string
	Delivery     string // its id
	Item         string // its id
	Destination  string // its id
	Type         string // of the destination
	Topic        string
	Number       int // 1 for the first
	Test         bool
	CreatedAt    time.Time // when the delivery was accepted
	TraceParent  string    // of the request, in the format of W3C Trace Context; "" if it had none
}

// Outcome is what an attempt came to.
type Outcome struct {
	State  queue.State  // of the item after the attempt
	Reason queue.Reason // why; queue.None after a success
	Took   time.Duration
	Err    error // of the handler, as it returned it; nil after a success
}

// Batch is what one transaction recorded, by the state of the items afterwards.
type Batch struct {
	Delivered int
	Retrying  int // an attempt failed, and another is due later
	Dead      int
	Cancelled int
	Released  int // they went back without a charge
	Lost      int // their lease was lost, and they went back
	Took      time.Duration
}

// Add counts an outcome.
func (b *Batch) Add(state queue.State, reason queue.Reason) {
	switch {
	case state == queue.Delivered:
		b.Delivered++
	case state == queue.Dead:
		b.Dead++
	case state == queue.Cancelled:
		b.Cancelled++
	case state == queue.Scheduled:
		b.Retrying++
	case reason == queue.LeaseLost:
		b.Lost++
	default:
		b.Released++
	}
}
