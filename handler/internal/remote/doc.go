// Package remote is what handlers share that deliver over a network: the checks of configured URLs,
// the classification of failures, and bodies that can be sealed. It is for the handlers of this
// module only, and imports no SDK.
package remote
