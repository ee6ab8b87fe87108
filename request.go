package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/spool"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// Request asks for one payload to be delivered. Only Payload is required.
type Request struct {
	Payload payload.Payload
	Topic   string // what it is about: "report.finished"
	// Destinations are ids. They, DestinationTags and Subscribers add up; a destination that is
	// meant twice counts once. Without any of the three, the request goes to the organization's
	// defaults for its topic.
	Destinations    []string
	DestinationTags []string // destinations that have one of these tags
	Subscribers     bool     // destinations whose Subscription matches topic, tags and metadata
	// IdempotencyKey makes a repeated request harmless. For 24 hours the same key with the same
	// request gives the first receipt; with another request it is a [*ConflictError]. Topic,
	// content, destinations, tags, metadata, priority, retry policy and overrides make up the
	// request. Its times, correlation id and trace context do not, because a repetition has others.
	IdempotencyKey string
	CorrelationID  string
	TraceParent    string // W3C trace context, handed to handlers
	Tags           []string
	Metadata       map[string]string // handed to handlers; at most 64 entries and 16 KiB
	Priority       Priority
	NotBefore      time.Time // no attempt is made earlier
	Deadline       time.Time // an item that is not delivered by then is dead
	Retry          retry.Policy
	PerDestination map[string]Override // by id, of Destinations
}

// Override is what a request sets for one of its destinations.
type Override struct {
	Params    any // for the handler, if its type takes params; encodes to JSON
	Priority  *Priority
	NotBefore time.Time
	Retry     retry.Policy
}

// Priority orders items: ready items of a higher priority go first. Every eighth claim begins with
// the lowest, so that nothing starves. Default: Normal.
type Priority int

// The priorities in common use; those between are allowed.
const (
	Lowest  Priority = -5
	Low     Priority = -2
	Normal  Priority = 0
	High    Priority = 2
	Highest Priority = 5
)

// Receipt says what was accepted.
type Receipt struct {
	ID         string // to track the delivery by
	Duplicate  bool   // it was accepted before, under the same idempotency key
	Items      []ReceiptItem
	DetailsURL string // by WithDetailsURL
}

// ReceiptItem is a delivery for one destination.
type ReceiptItem struct {
	ID          string
	Destination string
	Fallback    bool // it stands in for the primary defaults, none of which is usable
}

// Deliver accepts a request in a transaction of its own. When it returns without an error the
// delivery is committed and will be attempted; with an error, nothing was accepted. A streamed
// payload is stored first, in constant memory.
func (o *Org) Deliver(ctx context.Context, req Request) (_ *Receipt, err error) {
	if err := o.authorize(ctx, access.Deliver); err != nil {
		return nil, err
	}
	defer o.watch(ctx, access.Deliver, &err)
	drafts, err := o.drafts([]Request{req}, "")
	if err != nil {
		return nil, err
	}
	return o.acceptOne(ctx, drafts[0])
}

// DeliverMany accepts all requests or none, in one transaction.
func (o *Org) DeliverMany(ctx context.Context, reqs []Request) (_ []*Receipt, err error) {
	if err := o.authorize(ctx, access.Deliver); err != nil {
		return nil, err
	}
	defer o.watch(ctx, access.Deliver, &err)
	drafts, err := o.drafts(reqs, "requests")
	if err != nil || len(drafts) == 0 {
		return nil, err
	}
	return o.acceptAll(ctx, drafts)
}

// DeliverTx accepts a request in the host's transaction: the delivery is committed with it, or
// never existed. It uses no other connection. An error that the request itself causes (validation,
// an unknown destination, a conflict) leaves the transaction usable; after any other, roll back. A
// streamed payload is [ErrStageFirst].
//
// On SQLite a transaction that has read before it writes cannot wait for another writer:
// SQLITE_BUSY. Write first, or have the driver begin transactions immediately (_txlock=immediate).
//
// Call [DeliveryService.Wake] after the commit to have the delivery attempted at once rather than
// at the next poll.
func (o *Org) DeliverTx(ctx context.Context, tx Tx, req Request) (*Receipt, error) {
	receipts, err := o.deliverTx(ctx, tx, []Request{req}, "")
	if err != nil {
		return nil, err
	}
	return receipts[0], nil
}

// DeliverManyTx is DeliverMany in the host's transaction, under the rules of DeliverTx.
func (o *Org) DeliverManyTx(ctx context.Context, tx Tx, reqs []Request) ([]*Receipt, error) {
	return o.deliverTx(ctx, tx, reqs, "requests")
}

func (o *Org) deliverTx(ctx context.Context, tx Tx, reqs []Request, list string) ([]*Receipt, error) {
	if err := o.permit(ctx, access.Deliver, true); err != nil {
		return nil, err
	}
	if isNil(tx) {
		return nil, errors.New("delivery: the transaction is nil")
	}
	drafts, err := o.drafts(reqs, list)
	if err != nil || len(drafts) == 0 {
		return nil, err
	}
	host := o.s.store.In(tx)
	receipts, err := o.acceptIn(ctx, host, drafts)
	if err != nil {
		o.watchIn(ctx, host, access.Deliver, err)
	}
	return receipts, err
}

// Stage stores a payload now and returns one that stands for it, for a DeliverTx that must not wait
// for a stream. A staged payload that no delivery refers to is removed after a day.
func (o *Org) Stage(ctx context.Context, p payload.Payload) (payload.Payload, error) {
	if err := o.authorize(ctx, access.Deliver); err != nil {
		return payload.Payload{}, err
	}
	if p.IsZero() {
		return payload.Payload{}, destination.NewValidationError("payload", destination.Require("payload", ""))
	}
	if err := p.Err(); err != nil {
		return payload.Payload{}, destination.NewValidationError("payload", destination.Invalid("payload", "%v", err))
	}
	if _, _, ok := p.Ref(); ok {
		return p, nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return payload.Payload{}, err
	}
	limits := spool.Limits{Size: o.s.settings.Policy().Quotas.Payload, Inline: -1}
	if _, err := o.s.spool.Put(ctx, o.name, id.String(), p, limits); err != nil {
		return payload.Payload{}, payloadError("", err)
	}
	return payload.Ref(payload.StagedSource, id.String()), nil
}
