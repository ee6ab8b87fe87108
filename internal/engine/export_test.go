package engine

import "github.com/deliverykit/delivery/queue"

// For tests of the rules, which need no database.
var (
	Shares     = shares
	Hungry     = hungry
	Interleave = interleave
	Decide     = decide
)

// Cancelled is the cause of an attempt that is to end cancelled.
func Cancelled(r queue.Reason) error { return cancellation{r} }
