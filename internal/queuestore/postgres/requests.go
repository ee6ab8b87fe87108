package postgres

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// requests are the deliveries to insert, as columns.
type requests struct {
	id, deadline, key, fingerprint, ttl, priority, topic, correlation, trace, tags, metadata, options array
	name, contentType, size, payloadID, source, ref                                                   array

	fallback array  // true for those that go to one
	hashAt   array  // where the payload's hash begins in contents, from 1
	inline   array  // true where the payload follows its hash
	contents []byte // hashes and payloads, one after another

	destination  array // of all items, each once
	destinations map[string]int

	// By item.
	i, n, destinationAt, itemRank, itemNotBefore, itemDeadline, delivery, itemKeyed array
}

// newRequests turns a batch into columns. It allocates those that every batch has at their size.
func newRequests(batch []queuestore.NewDelivery) (*requests, error) {
	size, items := 0, 0
	for i := range batch {
		size += sha256.Size + len(batch[i].Payload.Inline)
		items += len(batch[i].Items)
	}
	n := len(batch)
	r := &requests{
		id: newArray(n, 36), priority: newArray(n, 2), contentType: newArray(n, 26), size: newArray(n, 6),
		hashAt: newArray(n, 7), inline: newArray(n, 5), contents: make([]byte, 0, size),
		destinations: map[string]int{},
		i:            newArray(items, 5), n: newArray(items, 2), destinationAt: newArray(items, 3),
		itemRank: newArray(items, 2), delivery: newArray(items, 36),
	}
	for i := range batch {
		if err := r.add(i+1, &batch[i]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// add appends delivery i, counted from 1, and its items.
func (r *requests) add(i int, d *queuestore.NewDelivery) error {
	r.id.id(d.ID)
	r.deadline.time(d.Deadline)
	r.key.opt(d.IdempotencyKey)
	if d.IdempotencyKey == "" {
		r.fingerprint.null()
		r.ttl.null()
	} else {
		r.fingerprint.bytes(d.Fingerprint)
		r.ttl.int(d.KeyExpires.Microseconds())
	}
	r.priority.int(int64(d.Priority))
	r.topic.opt(d.Topic)
	r.correlation.opt(d.CorrelationID)
	r.trace.opt(d.TraceParent)
	r.tags.opt(string(sqlstore.Encode(d.Tags)))
	r.metadata.opt(string(sqlstore.Encode(d.Metadata)))
	r.options.opt(string(sqlstore.Encode(d.Options)))
	r.name.opt(d.Payload.Name)
	r.contentType.text(d.Payload.ContentType)
	r.size.int(d.Payload.Size)
	r.payloadID.id(d.Payload.ID)
	r.source.opt(d.Payload.Source)
	r.ref.opt(d.Payload.Ref)
	if d.Payload.SHA256 == "" {
		r.hashAt.null()
	} else {
		r.hashAt.int(int64(len(r.contents) + 1))
	}
	var err error
	if r.contents, err = hex.AppendDecode(r.contents, []byte(d.Payload.SHA256)); err != nil {
		return err
	}
	r.inline.flag(d.Payload.Inline != nil)
	r.contents = append(r.contents, d.Payload.Inline...)
	r.fallback.flag(d.Fallback)
	for k, item := range d.Items {
		r.i.int(int64(i))
		r.n.int(int64(k + 1))
		at, seen := r.destinations[item.Destination]
		if !seen {
			at = len(r.destinations) + 1
			r.destinations[item.Destination] = at
			r.destination.id(item.Destination)
		}
		r.destinationAt.int(int64(at))
		r.itemRank.int(queuestore.Rank(item.Priority))
		r.itemNotBefore.time(item.NotBefore)
		r.itemDeadline.time(d.Deadline)
		r.delivery.id(d.ID)
		r.itemKeyed.flag(d.IdempotencyKey != "")
	}
	return nil
}
