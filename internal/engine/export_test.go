package engine

// For tests of the rules, which need no database.
var (
	Shares     = shares
	Hungry     = hungry
	Interleave = interleave
	Decide     = decide
	Cancelled  = errCancelled
)
