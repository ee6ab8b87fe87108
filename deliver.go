package delivery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// Deliver accepts a request in a transaction of its own. When it returns without an error the delivery is committed and
// will be attempted; with an error, nothing was accepted. A streamed payload is stored first, in constant memory.
func (o *Org) Deliver(ctx context.Context, req Request) (*Receipt, error) {
	receipts, err := o.deliver(ctx, []Request{req}, "", func(ctx context.Context, batch []*prepared) ([]*Receipt, error) {
		r, err := o.s.combiner.deliver(ctx, o, batch[0])
		return []*Receipt{r}, err
	})
	if err != nil {
		return nil, err
	}
	return receipts[0], nil
}

// DeliverMany accepts all requests or none, in one transaction.
func (o *Org) DeliverMany(ctx context.Context, reqs []Request) ([]*Receipt, error) {
	return o.deliver(ctx, reqs, "requests", o.accept)
}

// DeliverTx accepts a request in the host's transaction: it is committed with it, or never was. It uses no other
// connection. An error that the request itself causes (validation, an unknown destination, a conflict) leaves the
// transaction usable; after any other, roll back. A streamed payload is ErrStageFirst.
//
// On SQLite a transaction that has read before it writes cannot wait for another writer: SQLITE_BUSY. Write first, or
// have the driver begin transactions immediately (_txlock=immediate).
//
// Call Wake after the commit to have the delivery attempted at once rather than at the next poll.
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

// Stage stores a payload now, and returns one that stands for it, for a DeliverTx that must not wait for a stream. What
// no delivery refers to after a day is removed.
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
	if _, err := engine.Spool(ctx, o.s.store, o.s.settings.Payloads, o.name, id.String(), p, o.s.settings.Quotas.Payload, -1); err != nil {
		return payload.Payload{}, payloadError("", err)
	}
	return payload.Ref(payload.StagedSource, id.String()), nil
}

// deliver accepts requests by accept, which accepts all or none.
func (o *Org) deliver(ctx context.Context, reqs []Request, list string, accept func(context.Context, []*prepared) ([]*Receipt, error)) (_ []*Receipt, err error) {
	if err := o.authorize(ctx, access.Deliver); err != nil {
		return nil, err
	}
	defer o.watch(ctx, access.Deliver, &err)
	batch, err := o.prepareAll(reqs, list)
	if err != nil || len(batch) == 0 {
		return nil, err
	}
	return o.storeAll(ctx, batch, accept)
}

// storeAll stores the payloads of a batch and has it accepted.
func (o *Org) storeAll(ctx context.Context, batch []*prepared, accept func(context.Context, []*prepared) ([]*Receipt, error)) ([]*Receipt, error) {
	for _, p := range batch {
		if err := o.store(ctx, p); err != nil {
			o.dropSpooled(ctx, batch, nil)
			return nil, err
		}
	}
	receipts, err := accept(ctx, batch)
	if err != nil {
		if refused(err) {
			o.dropSpooled(ctx, batch, nil)
		}
		return nil, err
	}
	o.dropSpooled(ctx, batch, receipts)
	o.s.engine.Wake()
	return receipts, nil
}

// accept enqueues a batch in a transaction.
func (o *Org) accept(ctx context.Context, batch []*prepared) (receipts []*Receipt, err error) {
	err = o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		receipts, err = o.enqueue(ctx, tx, batch)
		return err
	}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		for i, r := range receipts {
			if !r.Duplicate {
				d, err := tx.Delivery(ctx, o.name, batch[i].ID)
				return d != nil, err
			}
		}
		return true, nil
	})
	return receipts, err
}

// refused reports whether err says that nothing was accepted, for what the requests hold; after other errors that may
// not be known.
func refused(err error) bool {
	var invalid *destination.ValidationError
	var conflict *ConflictError
	return errors.As(err, &invalid) || errors.As(err, &conflict) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoDestinations)
}

// dropSpooled removes the stored payloads of requests that were not accepted or, with receipts, were accepted before.
// What it leaves, maintenance finds.
func (o *Org) dropSpooled(ctx context.Context, batch []*prepared, receipts []*Receipt) {
	for i, p := range batch {
		if !p.spooled || receipts != nil && !receipts[i].Duplicate {
			continue
		}
		err := engine.Drop(context.WithoutCancel(ctx), o.s.store, o.s.settings.Payloads, o.name, p.Payload.ID, p.storeKey)
		if err != nil {
			o.s.settings.Logger.WarnContext(ctx, "delivery: an unused payload could not be removed; maintenance will", "payload", p.Payload.ID, "error", err)
		}
	}
}

func (o *Org) deliverTx(ctx context.Context, tx Tx, reqs []Request, list string) ([]*Receipt, error) {
	if err := o.permit(ctx, access.Deliver, true); err != nil {
		return nil, err
	}
	if isNil(tx) {
		return nil, errors.New("delivery: the transaction is nil")
	}
	batch, err := o.prepareAll(reqs, list)
	if err != nil || len(batch) == 0 {
		return nil, err
	}
	host := o.s.store.In(tx)
	for _, p := range batch {
		if err := o.inline(ctx, host, p); err != nil {
			return nil, err
		}
	}
	receipts, err := o.enqueue(ctx, host, batch)
	if err != nil {
		o.watchIn(ctx, host, access.Deliver, err)
	}
	return receipts, err
}

func (o *Org) prepareAll(reqs []Request, list string) ([]*prepared, error) {
	if most := o.s.settings.Quotas.Batch; len(reqs) > most {
		return nil, destination.NewValidationError("request", destination.Invalid(list, "has %d requests, at most %d are allowed", len(reqs), most))
	}
	batch := make([]*prepared, len(reqs))
	var errs []error
	for i, req := range reqs {
		path := ""
		if list != "" {
			path = fmt.Sprintf("%s[%d].", list, i)
		}
		var err error
		batch[i], err = o.prepare(req, path)
		errs = append(errs, err)
	}
	if err := destination.NewValidationError("request", errors.Join(errs...)); err != nil {
		return nil, err
	}
	return batch, nil
}

// describe fills in what is known of a payload without reading a stream, and reports whether that is all.
func (o *Org) describe(p *prepared) (done bool, err error) {
	content := p.request.Payload
	p.Payload.Info = payload.Info{Name: content.Name(), ContentType: content.ContentType(), Size: -1}
	if source, ref, ok := content.Ref(); ok {
		if source == payload.StagedSource {
			return true, nil // described in the transaction
		}
		if o.s.settings.Sources[source] == nil {
			return false, destination.NewValidationError("request",
				destination.Invalid(p.path+"payload", "there is no source %q; register it with delivery.WithSource", source))
		}
		p.Payload.Source, p.Payload.Ref = source, ref
		return true, nil
	}
	data, ok := content.Bytes()
	if !ok {
		return false, nil
	}
	if most := o.s.settings.Quotas.InMemory; int64(len(data)) > most {
		return false, payloadError(p.path, fmt.Errorf("%w: %d bytes, at most %d are taken from memory; stream it with payload.Reader, Writer or File",
			payload.ErrTooLarge, len(data), most))
	}
	if int64(len(data)) > o.s.settings.Quotas.Inline {
		return false, nil
	}
	p.inlined(data)
	return true, nil
}

func (p *prepared) inlined(data []byte) {
	sum := sha256.Sum256(data)
	p.Payload.Size, p.Payload.SHA256 = int64(len(data)), hex.EncodeToString(sum[:])
	p.Payload.Inline = data
	if data == nil {
		p.Payload.Inline = []byte{}
	}
}

// store puts the payload where it belongs, in transactions of its own where it is a stream.
func (o *Org) store(ctx context.Context, p *prepared) error {
	done, err := o.describe(p)
	if err != nil || done {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	quotas := o.s.settings.Quotas
	spooled, err := engine.Spool(ctx, o.s.store, o.s.settings.Payloads, o.name, id.String(), p.request.Payload, quotas.Payload, quotas.Inline)
	if err != nil {
		return payloadError(p.path, err)
	}
	if spooled.Inline != nil {
		p.inlined(spooled.Inline)
		return nil
	}
	p.Payload.Info, p.Payload.ID, p.spooled, p.storeKey = spooled.Info, id.String(), true, spooled.Key
	return nil
}

// inline is store within the host's transaction: what is in memory is written there, a stream is refused.
func (o *Org) inline(ctx context.Context, tx *sqlstore.Tx, p *prepared) error {
	done, err := o.describe(p)
	if err != nil || done {
		return err
	}
	data, ok := p.request.Payload.Bytes()
	if !ok {
		return ErrStageFirst
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	p.inlined(data)
	p.Payload.Inline, p.Payload.ID = nil, id.String()
	return engine.SpoolTx(ctx, tx, o.name, p.Payload.ID, p.Payload.Info, data)
}

func payloadError(path string, err error) error {
	return fmt.Errorf("delivery: %spayload: %w", path, err)
}

// enqueue inserts a batch. Nothing it does fails for what the requests hold before all of them are known to be good.
func (o *Org) enqueue(ctx context.Context, tx *sqlstore.Tx, batch []*prepared) ([]*Receipt, error) {
	rows := make([]sqlstore.NewDelivery, 0, len(batch))
	at := make([]int, 0, len(batch)) // the row of each request
	keys := map[string]int{}
	for _, p := range batch {
		if err := o.complete(ctx, tx, p); err != nil {
			return nil, err
		}
		if first, taken := keys[p.IdempotencyKey]; taken && p.IdempotencyKey != "" {
			if !bytes.Equal(rows[first].Fingerprint, p.Fingerprint) {
				return nil, &ConflictError{Key: p.IdempotencyKey, Delivery: rows[first].ID}
			}
			at = append(at, first)
			continue
		}
		keys[p.IdempotencyKey] = len(rows)
		at = append(at, len(rows))
		rows = append(rows, p.NewDelivery)
	}
	results, err := o.s.store.Enqueue(ctx, tx, o.name, tx.Now, rows)
	if err != nil {
		return nil, err
	}
	if err := missing(batch, at, results); err != nil {
		return nil, err
	}
	first := make([]*Receipt, len(rows))
	for i, result := range results {
		if first[i], err = o.receipt(ctx, tx, rows[i], result); err != nil {
			return nil, errors.Join(err, o.withdraw(ctx, tx, err, rows, results))
		}
	}
	receipts := make([]*Receipt, len(batch))
	for i, row := range at {
		r := *first[row]
		r.Duplicate = r.Duplicate || i > 0 && slices.Contains(at[:i], row)
		receipts[i] = &r
	}
	return receipts, nil
}

// complete looks up what of a request only the database knows: a staged payload, and the types that take params.
func (o *Org) complete(ctx context.Context, tx *sqlstore.Tx, p *prepared) error {
	if source, ref, ok := p.request.Payload.Ref(); ok && source == payload.StagedSource {
		id, valid := canonicalID(ref)
		var found bool
		if valid {
			var err error
			if p.Payload.Info, found, err = tx.PayloadInfo(ctx, o.name, id); err != nil {
				return err
			}
		}
		if !found {
			return notFound("staged payload", ref)
		}
		p.Payload.ID = id
		if name := p.request.Payload.Name(); name != "" {
			p.Payload.Name = name
		}
	}
	p.fingerprint()
	var errs []error
	for i, item := range p.Items {
		params := p.Options.Items[i+1].Params
		if params == nil {
			continue
		}
		d, err := tx.Destination(ctx, o.name, item.Destination)
		if err != nil {
			return err
		}
		if d == nil || d.Deleted {
			return notFound("destination", item.Destination)
		}
		t := o.s.settings.Types[d.Type]
		switch {
		case t == nil: // this process only sends: the one that attempts it will see
		case t.Params == nil:
			err = destination.Invalid("", "destinations of type %q take no params", d.Type)
		default:
			err = t.Params.ParseParams(params)
		}
		errs = append(errs, destination.Within(fmt.Sprintf("%sper_destination[%q].params", p.path, item.Destination), err))
	}
	return destination.NewValidationError("request", errors.Join(errs...))
}

func missing(batch []*prepared, at []int, results []sqlstore.Enqueued) error {
	var errs []error
	for i, p := range batch {
		for _, id := range results[at[i]].Missing {
			switch {
			case id != "":
				errs = append(errs, &notFoundError{path: p.path, kind: "destination", id: id})
			case len(results[at[i]].Items) > p.Most:
				errs = append(errs, destination.NewValidationError("request", destination.Invalid(p.path+"destinations",
					"it goes to %d destinations, at most %d are allowed", len(results[at[i]].Items), p.Most)))
			default:
				errs = append(errs, ErrNoDestinations)
			}
		}
	}
	return errors.Join(errs...)
}

// receipt is the new delivery's or, where its key was taken, the first one's.
func (o *Org) receipt(ctx context.Context, tx *sqlstore.Tx, row sqlstore.NewDelivery, result sqlstore.Enqueued) (*Receipt, error) {
	r := &Receipt{ID: row.ID}
	if result.Taken {
		id, fingerprint, fallback, err := tx.TakenKey(ctx, o.name, row.IdempotencyKey)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(fingerprint, row.Fingerprint) {
			return nil, &ConflictError{Key: row.IdempotencyKey, Delivery: id}
		}
		r.ID, r.Duplicate = id, true
		if result.Items, err = tx.ItemsOf(ctx, o.name, id); err != nil {
			return nil, err
		}
		for i := range result.Items {
			result.Items[i].Fallback = fallback
		}
	}
	for _, item := range result.Items {
		r.Items = append(r.Items, ReceiptItem{ID: engine.ItemID(r.ID, item.N), Destination: item.Destination, Fallback: item.Fallback})
	}
	r.DetailsURL = o.detailsURL(r.ID)
	return r, nil
}

// withdraw takes back what was inserted beside a request that conflicts, so that the host's transaction holds nothing of
// a call that failed.
func (o *Org) withdraw(ctx context.Context, tx *sqlstore.Tx, cause error, rows []sqlstore.NewDelivery, results []sqlstore.Enqueued) error {
	if conflict := (*ConflictError)(nil); !errors.As(cause, &conflict) {
		return nil // the database failed: the transaction is to be rolled back
	}
	for i, r := range results {
		if !r.Taken {
			if err := tx.Withdraw(ctx, o.name, rows[i].ID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *Org) detailsURL(id string) string {
	if f := o.s.settings.DetailsURL; f != nil {
		return f(o.name, id)
	}
	return ""
}
