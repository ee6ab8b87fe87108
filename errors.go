package delivery

import (
	"errors"
	"fmt"

	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Errors to test for with errors.Is. Others are [*ConflictError], [*destination.ValidationError]
// and payload.ErrTooLarge.
var (
	// ErrNotFound: the organization has nothing with that id. Ids of other organizations give the
	// same error.
	ErrNotFound = errors.New("delivery: not found")
	// ErrOrganization: the organization's name is unusable.
	ErrOrganization = errors.New("delivery: bad organization name")
	// ErrNoDestinations: the request names no destination, and the organization has no default for
	// its topic and no destination with the subscription or tag that it asks for.
	ErrNoDestinations = errors.New(
		"delivery: the request names no destination, and no default, subscriber or tag gives it one")
	// ErrStale: the destination no longer has the version in Patch.IfVersion.
	ErrStale = errors.New("delivery: the destination was changed in the meantime")
	// ErrInUse: items wait for the destination that is to be deleted.
	ErrInUse = errors.New("delivery: items wait for this destination; delete it with destination.DrainPending, " +
		"which delivers them first, or with destination.CancelPending")
	// ErrEnded: the delivery has ended, and there is nothing to cancel.
	ErrEnded = errors.New("delivery: the delivery has already ended")
	// ErrNotRetryable: an item cannot be retried. The error gives the reason. Replay may still
	// work.
	ErrNotRetryable = errors.New("delivery: cannot be retried")
	// ErrStageFirst: DeliverTx was given a payload that is read as a stream.
	ErrStageFirst = errors.New(
		"delivery: a streamed payload would keep the transaction open; Stage it before DeliverTx",
	)
	// ErrNoKeys: a config holds secrets, and the service has no key to seal them with.
	ErrNoKeys = configs.ErrNoKeys
	// ErrRunning: Run is already under way in this service.
	ErrRunning = errors.New("delivery: Run is already under way")
	// ErrClosed: the service was closed.
	ErrClosed = errors.New("delivery: the service is closed")
	// ErrNotMigrated: some or all tables are missing.
	ErrNotMigrated = sqlstore.ErrNotMigrated
)

// ConflictError says that an idempotency key was used before for a different request.
type ConflictError struct {
	Key      string
	Delivery string // the delivery that has it
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf(
		"delivery: the idempotency key %q was used before for a different request, delivery %s", e.Key,
		e.Delivery,
	)
}

// notFoundError says that an organization has nothing with an id. It is ErrNotFound.
type notFoundError struct{ path, kind, id string }

func (e *notFoundError) Error() string {
	return fmt.Sprintf("%v: %s%s %.100q", ErrNotFound, e.path, e.kind, e.id)
}

func (e *notFoundError) Is(target error) bool { return target == ErrNotFound }

func notFound(kind, id string) error { return &notFoundError{kind: kind, id: id} }
