package delivery

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/observe"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/spool"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// A request becomes a delivery in three stages, each a type of its own: a draft has passed the
// checks that need no database; an acceptance has its payload where it belongs; inserting it, in a
// transaction, makes the receipt.

// acceptance is a draft whose payload is stored.
type acceptance struct {
	*draft
	org     *Org
	content sqlstore.Payload // as far as it is known before the transaction
	staged  bool             // the payload was staged: it is looked up in the transaction, by content.ID
	spooled bool             // the payload was written before the transaction
	key     string           // of the spooled payload in the payload store
}

// acceptOne accepts a draft, in a transaction that it may share with other calls.
func (o *Org) acceptOne(ctx context.Context, d *draft) (*Receipt, error) {
	receipts, err := o.spoolAnd(ctx, []*draft{d}, func(ctx context.Context, batch []acceptance) ([]*Receipt, error) {
		r, err := o.s.group.Do(ctx, batch[0])
		return []*Receipt{r}, err
	})
	if err != nil {
		return nil, err
	}
	return receipts[0], nil
}

// acceptAll accepts drafts in a transaction of their own.
func (o *Org) acceptAll(ctx context.Context, drafts []*draft) ([]*Receipt, error) {
	return o.spoolAnd(ctx, drafts, o.insertAll)
}

// acceptIn accepts drafts in a host's transaction.
func (o *Org) acceptIn(ctx context.Context, host *sqlstore.Tx, drafts []*draft) ([]*Receipt, error) {
	batch := make([]acceptance, len(drafts))
	for i, d := range drafts {
		var err error
		if batch[i], err = o.storeIn(ctx, host, d); err != nil {
			return nil, err
		}
	}
	receipts, err := o.insert(ctx, host, batch)
	if err == nil {
		o.s.observeAccepted(ctx, batch, receipts, true)
	}
	return receipts, err
}

// spoolAnd stores the payloads of drafts and has insert, which inserts all of them or none, make
// deliveries of them. Payloads that no delivery refers to afterwards are removed.
func (o *Org) spoolAnd(
	ctx context.Context, drafts []*draft, insert func(context.Context, []acceptance) ([]*Receipt, error),
) ([]*Receipt, error) {
	batch := make([]acceptance, 0, len(drafts))
	for _, d := range drafts {
		a, err := o.store(ctx, d)
		if err != nil {
			o.dropSpooled(ctx, batch, nil)
			return nil, err
		}
		batch = append(batch, a)
	}
	receipts, err := insert(ctx, batch)
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

// refused reports whether err says that nothing was accepted because of what the requests hold.
// After other errors that may not be known.
func refused(err error) bool {
	var invalid *destination.ValidationError
	var conflict *ConflictError
	return errors.As(err, &invalid) || errors.As(err, &conflict) || errors.Is(err, ErrNotFound) ||
		errors.Is(err, ErrNoDestinations)
}

// dropSpooled removes the spooled payloads of a batch that was not accepted. With receipts it
// removes those of the duplicates alone. Maintenance finds what it leaves.
func (o *Org) dropSpooled(ctx context.Context, batch []acceptance, receipts []*Receipt) {
	for i, a := range batch {
		if !a.spooled || receipts != nil && !receipts[i].Duplicate {
			continue
		}
		if err := o.s.spool.Drop(context.WithoutCancel(ctx), o.name, a.content.ID, a.key); err != nil {
			o.s.settings.Logger.WarnContext(ctx, "delivery: an unused payload could not be removed; maintenance will",
				"payload", a.content.ID, "error", err)
		}
	}
}

// store puts the payload of a draft where it belongs. A stream is written in transactions of its
// own.
func (o *Org) store(ctx context.Context, d *draft) (acceptance, error) {
	a, done, err := o.describe(d)
	if err != nil || done {
		return a, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return a, err
	}
	stored, err := o.s.spool.Put(
		ctx, o.name, id.String(), d.payload, spool.Limits{Size: d.quotas.Payload, Inline: d.quotas.Inline},
	)
	if err != nil {
		return a, payloadError(d.path, err)
	}
	if stored.Inline != nil {
		a.inline(stored.Inline)
		return a, nil
	}
	a.content.Info, a.content.ID, a.spooled, a.key = stored.Info, id.String(), true, stored.Key
	return a, nil
}

// storeIn is store in a host's transaction. A stream is refused.
func (o *Org) storeIn(ctx context.Context, host *sqlstore.Tx, d *draft) (acceptance, error) {
	a, done, err := o.describe(d)
	if err != nil || done {
		return a, err
	}
	data, ok := d.payload.Bytes()
	if !ok {
		return a, ErrStageFirst
	}
	id, err := uuid.NewV7()
	if err != nil {
		return a, err
	}
	a.inline(data)
	a.content.Inline, a.content.ID = nil, id.String()
	return a, o.s.spool.PutIn(ctx, host, o.name, a.content.ID, a.content.Info, data)
}

// describe notes what is known of a payload without reading a stream, and reports whether nothing
// is left to store.
func (o *Org) describe(d *draft) (a acceptance, done bool, err error) {
	a = acceptance{draft: d, org: o}
	p := d.payload
	a.content.Info = payload.Info{Name: p.Name(), ContentType: p.ContentType(), Size: -1}
	if source, ref, ok := p.Ref(); ok {
		if source == payload.StagedSource {
			a.staged, a.content.ID = true, ref
			return a, true, nil
		}
		if o.s.settings.Sources[source] == nil {
			return a, false, destination.NewValidationError("request", destination.Invalid(d.path+"payload",
				"there is no source %q; register it with delivery.WithSource", source))
		}
		a.content.Source, a.content.Ref = source, ref
		return a, true, nil
	}
	data, ok := p.Bytes()
	if !ok {
		return a, false, nil
	}
	if limit := d.quotas.InMemory; int64(len(data)) > limit {
		return a, false, payloadError(d.path, fmt.Errorf(
			"%w: %d bytes, at most %d are taken from memory; stream it with payload.Reader, Writer or File",
			payload.ErrTooLarge, len(data), limit))
	}
	if int64(len(data)) > d.quotas.Inline {
		return a, false, nil
	}
	a.inline(data)
	return a, true, nil
}

// inline has the delivery's row hold the payload.
func (a *acceptance) inline(data []byte) {
	sum := sha256.Sum256(data)
	a.content.Size, a.content.SHA256 = int64(len(data)), hex.EncodeToString(sum[:])
	a.content.Inline = data
	if data == nil {
		a.content.Inline = []byte{}
	}
}

func payloadError(path string, err error) error {
	return fmt.Errorf("delivery: %spayload: %w", path, err)
}

const (
	maxShared      = 500     // calls of Deliver in one transaction
	maxSharedBytes = 1 << 20 // of their inline payloads
	maxSharedOrgs  = 16      // organizations: each takes a statement
)

// shareTransactions has calls of Deliver that come at the same time share one.
func (s *DeliveryService) shareTransactions() {
	s.group.Together = s.insertTogether
	s.group.Alone = func(ctx context.Context, a acceptance) (*Receipt, error) {
		receipts, err := a.org.insertAll(ctx, []acceptance{a})
		if err != nil {
			return nil, err
		}
		return receipts[0], nil
	}
	s.group.Room = func(leader acceptance) func(acceptance) bool {
		calls, size, organizations := 1, len(leader.content.Inline), map[string]bool{leader.org.name: true}
		return func(next acceptance) bool {
			calls++
			size += len(next.content.Inline)
			organizations[next.org.name] = true
			return calls <= maxShared && size <= maxSharedBytes && len(organizations) <= maxSharedOrgs
		}
	}
	s.group.Shared = func(err error) bool { return errors.Is(err, sqlstore.ErrOutcomeUnknown) }
	s.group.Own = refused
}

// insertTogether inserts what boards the transaction, with a statement for each organization.
// Transactions that share idempotency keys take them in one order.
func (s *DeliveryService) insertTogether(ctx context.Context, board func() []acceptance) ([]*Receipt, error) {
	var batch []acceptance
	var receipts []*Receipt
	err := s.store.CommitShared(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		batch = board()
		receipts = make([]*Receipt, len(batch))
		order := make([]int, len(batch))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(batch[a].org.name, batch[b].org.name) })
		for len(order) > 0 {
			org := batch[order[0]].org
			n := 0
			var of []acceptance
			for ; n < len(order) && batch[order[n]].org.name == org.name; n++ {
				of = append(of, batch[order[n]])
			}
			some, err := org.insert(ctx, tx, of)
			if err != nil {
				return err
			}
			for i, r := range some {
				receipts[order[i]] = r
			}
			order = order[n:]
		}
		return nil
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		return inserted(ctx, tx, batch, receipts)
	}})
	if err == nil {
		s.observeAccepted(ctx, batch, receipts, false)
	}
	return receipts, err
}

// insertAll inserts a batch in a transaction of its own.
func (o *Org) insertAll(ctx context.Context, batch []acceptance) (receipts []*Receipt, err error) {
	err = o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		receipts, err = o.insert(ctx, tx, batch)
		return err
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		return inserted(ctx, tx, batch, receipts)
	}})
	if err == nil {
		o.s.observeAccepted(ctx, batch, receipts, false)
	}
	return receipts, err
}

// observeAccepted reports what a transaction accepted, organization by organization.
func (s *DeliveryService) observeAccepted(
	ctx context.Context, batch []acceptance, receipts []*Receipt, uncommitted bool,
) {
	if s.settings.Observer == nil {
		return
	}
	of := map[string]*observe.Acceptance{}
	for i, a := range batch {
		sum := of[a.org.name]
		if sum == nil {
			sum = &observe.Acceptance{Organization: a.org.name, Uncommitted: uncommitted}
			of[a.org.name] = sum
		}
		if receipts[i].Duplicate {
			sum.Duplicates++
			continue
		}
		sum.Deliveries++
		sum.Items += len(receipts[i].Items)
	}
	for _, sum := range of {
		s.settings.Observer.Accepted(ctx, *sum)
	}
}

// inserted settles a COMMIT whose outcome is unknown: if one delivery is there, all are.
func inserted(ctx context.Context, tx *sqlstore.Tx, batch []acceptance, receipts []*Receipt) (bool, error) {
	for i, a := range batch {
		if r := receipts[i]; !r.Duplicate {
			d, err := tx.Delivery(ctx, a.org.name, r.ID)
			return d != nil, err
		}
	}
	return true, nil
}

// insert inserts a batch. It fails for what the requests hold before it inserts any of them, or
// takes back what it inserted.
func (o *Org) insert(ctx context.Context, tx *sqlstore.Tx, batch []acceptance) ([]*Receipt, error) {
	rows := make([]queuestore.NewDelivery, 0, len(batch))
	at := make([]int, 0, len(batch)) // the row of each request
	keys := map[string]int{}
	for _, a := range batch {
		row, err := o.complete(ctx, tx, a)
		if err != nil {
			return nil, err
		}
		if first, taken := keys[row.IdempotencyKey]; taken && row.IdempotencyKey != "" {
			if !bytes.Equal(rows[first].Fingerprint, row.Fingerprint) {
				return nil, &ConflictError{Key: row.IdempotencyKey, Delivery: rows[first].ID}
			}
			at = append(at, first)
			continue
		}
		keys[row.IdempotencyKey] = len(rows)
		at = append(at, len(rows))
		rows = append(rows, row)
	}
	results, err := o.s.store.Enqueue(ctx, tx, o.name, tx.Now, rows)
	if err != nil {
		return nil, err
	}
	if err := missing(batch, at, results); err != nil {
		return nil, err
	}
	return o.receipts(ctx, tx, rows, results, at)
}

// complete returns the row to insert for a request. It looks up what only the database knows: a
// staged payload, and the types that take params.
func (o *Org) complete(ctx context.Context, tx *sqlstore.Tx, a acceptance) (row queuestore.NewDelivery, err error) {
	row = a.row
	row.Payload = a.content
	if a.staged {
		if err := o.findStaged(ctx, tx, a, &row.Payload); err != nil {
			return row, err
		}
	}
	fingerprint(&row)
	var errs []error
	for i, item := range row.Items {
		params := row.Options.Items[i+1].Params
		if params == nil {
			continue
		}
		d, err := tx.Destination(ctx, o.name, item.Destination)
		if err != nil {
			return row, err
		}
		if d == nil || d.Deleted {
			return row, notFound("destination", item.Destination)
		}
		errs = append(errs, destination.Within(fmt.Sprintf("%sper_destination[%q].params", a.path, item.Destination),
			o.checkParams(d.Type, params)))
	}
	return row, destination.NewValidationError("request", errors.Join(errs...))
}

func (o *Org) findStaged(ctx context.Context, tx *sqlstore.Tx, a acceptance, p *sqlstore.Payload) error {
	id, valid := sqlstore.CanonicalID(p.ID)
	found := false
	if valid {
		var err error
		if p.Info, found, err = spool.Lock(ctx, tx, o.name, id); err != nil {
			return err
		}
	}
	if !found {
		return notFound("staged payload", p.ID)
	}
	p.ID = id
	if name := a.payload.Name(); name != "" {
		p.Name = name
	}
	return nil
}

func (o *Org) checkParams(typ string, params json.RawMessage) error {
	t := o.s.settings.Types[typ]
	switch {
	case t == nil: // this process only sends: the one that attempts the item checks them
		return nil
	case t.Params == nil:
		return destination.Invalid("", "destinations of type %q take no params", typ)
	}
	return t.Params.ParseParams(params)
}

// missing reports the destinations of a batch that were not found.
func missing(batch []acceptance, at []int, results []queuestore.Enqueued) error {
	var errs []error
	for i, a := range batch {
		result := results[at[i]]
		for _, id := range result.Missing {
			switch {
			case id != "":
				errs = append(errs, &notFoundError{path: a.path, kind: "destination", id: id})
			case len(result.Items) > a.row.MaxDestinations:
				errs = append(errs, destination.NewValidationError("request", destination.Invalid(a.path+"destinations",
					"it goes to %d destinations, at most %d are allowed", len(result.Items), a.row.MaxDestinations)))
			default:
				errs = append(errs, ErrNoDestinations)
			}
		}
	}
	return errors.Join(errs...)
}

// receipts makes the receipts of a batch, of which each request has the row at its place in at.
// Where an idempotency key conflicts, it takes back what was inserted.
func (o *Org) receipts(
	ctx context.Context, tx *sqlstore.Tx, rows []queuestore.NewDelivery, results []queuestore.Enqueued, at []int,
) ([]*Receipt, error) {
	byRow := make([]*Receipt, len(rows))
	for i, result := range results {
		var err error
		if byRow[i], err = o.receipt(ctx, tx, rows[i], result); err != nil {
			return nil, errors.Join(err, o.withdraw(ctx, tx, err, rows, results))
		}
	}
	receipts := make([]*Receipt, len(at))
	seen := make([]bool, len(rows))
	for i, row := range at {
		r := *byRow[row]
		r.Duplicate = r.Duplicate || seen[row]
		seen[row] = true
		receipts[i] = &r
	}
	return receipts, nil
}

// receipt is the new delivery's or, where its key was taken, that of the first delivery.
func (o *Org) receipt(
	ctx context.Context, tx *sqlstore.Tx, row queuestore.NewDelivery, result queuestore.Enqueued,
) (*Receipt, error) {
	r := &Receipt{ID: row.ID}
	if result.Taken {
		id, fingerprint, fallback, err := queuestore.TakenKey(ctx, tx, o.name, row.IdempotencyKey)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(fingerprint, row.Fingerprint) {
			return nil, &ConflictError{Key: row.IdempotencyKey, Delivery: id}
		}
		r.ID, r.Duplicate = id, true
		if result.Items, err = queuestore.ItemsOf(ctx, tx, o.name, id); err != nil {
			return nil, err
		}
		for i := range result.Items {
			result.Items[i].Fallback = fallback
		}
	}
	for _, item := range result.Items {
		r.Items = append(r.Items, ReceiptItem{
			ID: sqlstore.ItemID(r.ID, item.N), Destination: item.Destination, Fallback: item.Fallback,
		})
	}
	r.DetailsURL = o.detailsURL(r.ID)
	return r, nil
}

// withdraw takes back what was inserted together with a request that conflicts, so that the host's
// transaction holds nothing of a call that failed. After an error of the database there is nothing
// to take back: the transaction is to be rolled back.
func (o *Org) withdraw(
	ctx context.Context, tx *sqlstore.Tx, cause error, rows []queuestore.NewDelivery, results []queuestore.Enqueued,
) error {
	if conflict := (*ConflictError)(nil); !errors.As(cause, &conflict) {
		return nil
	}
	for i, r := range results {
		if !r.Taken {
			if err := queuestore.Withdraw(ctx, tx, o.name, rows[i].ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// fingerprint identifies what a request with an idempotency key asks for. Its payload is known by
// then.
func fingerprint(d *queuestore.NewDelivery) {
	if d.IdempotencyKey == "" {
		return
	}
	ids := make([]string, len(d.Items))
	overrides := map[string]sqlstore.Option{}
	priorities := map[string]int{}
	for i, item := range d.Items {
		ids[i] = item.Destination
		overrides[item.Destination] = d.Options.Items[i+1]
		priorities[item.Destination] = item.Priority
	}
	slices.Sort(ids)
	request := map[string]any{
		"v": 1, "topic": d.Topic, "destinations": ids,
		"payload": d.Payload.SHA256, "source": d.Payload.Source, "ref": d.Payload.Ref,
		"tags": d.Tags, "metadata": d.Metadata, "priority": d.Priority, "retry": d.Options.Retry,
		"overrides": overrides, "priorities": priorities,
	}
	if d.Subscribers || len(d.Tagged) > 0 {
		request["subscribers"], request["tagged"] = d.Subscribers, d.Tagged
	}
	if d.Options.Test {
		request["test"] = true
	}
	if d.ReplayOf != "" {
		request["replay_of"] = d.ReplayOf
	}
	raw, _ := json.Marshal(request) // of plain data: it cannot fail
	sum := sha256.Sum256(raw)
	d.Fingerprint = sum[:]
}
