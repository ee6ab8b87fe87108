package delivery

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

const (
	keyLifetime      = 24 * time.Hour
	maxTopic         = 200 // bytes
	maxText          = 255 // bytes, of a name, key or id that a host gives
	maxTags          = 32
	maxTag           = 100 // bytes
	maxMetadata      = 64
	maxMetadataBytes = 16 << 10
	maxParams        = 64 << 10 // bytes
)

// draft is a request that passed every check that needs no database. row is what will be inserted;
// it lacks the payload and the fingerprint.
type draft struct {
	path    string // of the request in errors: "" or "requests[2]."
	payload payload.Payload
	row     queuestore.NewDelivery
	quotas  settings.Quotas // in force when it was checked
}

// drafts checks requests, and reports everything that is wrong with any of them. list is the name
// of the list they come in, "" for a single one.
func (o *Org) drafts(reqs []Request, list string) ([]*draft, error) {
	quotas := o.s.settings.Policy().Quotas
	if len(reqs) > quotas.Batch {
		return nil, destination.NewValidationError("request",
			destination.Invalid(list, "has %d requests, at most %d are allowed", len(reqs), quotas.Batch))
	}
	all := make([]*draft, len(reqs))
	errs := make([]error, len(reqs))
	for i, req := range reqs {
		path := ""
		if list != "" {
			path = fmt.Sprintf("%s[%d].", list, i)
		}
		all[i], errs[i] = o.draft(req, path, quotas)
	}
	if err := destination.NewValidationError("request", errors.Join(errs...)); err != nil {
		return nil, err
	}
	return all, nil
}

func (o *Org) draft(req Request, path string, quotas settings.Quotas) (*draft, error) {
	p := &problems{path: path}
	checkContent(p, req)
	checkLabels(p, req)
	checkTimes(p, req, o.s.settings.Now())
	checkPriority(p, "priority", req.Priority)
	if err := req.Retry.Validate(); err != nil {
		p.add("retry", "%v", err)
	}
	ids := destinationIDs(p, req.Destinations, quotas.Destinations)
	overrides := checkOverrides(p, req, ids)
	id, err := uuid.NewV7()
	p.join(err)
	d := &draft{path: path, payload: req.Payload, quotas: quotas, row: queuestore.NewDelivery{
		DeliveryRow: sqlstore.DeliveryRow{
			Organization:   o.name,
			ID:             id.String(),
			Deadline:       req.Deadline,
			Topic:          req.Topic,
			Priority:       int(req.Priority),
			IdempotencyKey: req.IdempotencyKey,
			CorrelationID:  req.CorrelationID,
			TraceParent:    req.TraceParent,
			Tags:           req.Tags,
			Metadata:       req.Metadata,
			Options:        sqlstore.Options{Retry: req.Retry},
		},
		NotBefore: req.NotBefore, KeyExpires: keyLifetime, MaxDestinations: quotas.Destinations,
		Subscribers: req.Subscribers, Tagged: req.DestinationTags,
	}}
	for _, id := range ids {
		item := queuestore.NewItem{Destination: id, Priority: int(req.Priority), NotBefore: req.NotBefore}
		if v, ok := overrides[id]; ok {
			d.override(p, &item, v)
		}
		d.row.Items = append(d.row.Items, item)
	}
	return d, errors.Join(p.errs...)
}

// override applies what a request sets for one destination to the item that comes next.
func (d *draft) override(p *problems, item *queuestore.NewItem, v Override) {
	option := sqlstore.Option{Retry: v.Retry}
	if v.Priority != nil {
		item.Priority = int(*v.Priority)
	}
	if !v.NotBefore.IsZero() {
		item.NotBefore = v.NotBefore
	}
	if v.Params != nil {
		option.Params = params(p, fmt.Sprintf("per_destination[%q].params", item.Destination), v.Params)
	}
	d.option(len(d.row.Items)+1, option)
}

// option sets what applies to the n-th item alone.
func (d *draft) option(n int, o sqlstore.Option) {
	if d.row.Options.Items == nil {
		d.row.Options.Items = map[int]sqlstore.Option{}
	}
	d.row.Options.Items[n] = o
}

func params(p *problems, field string, v any) json.RawMessage {
	raw, err := json.Marshal(v)
	switch {
	case err != nil:
		p.add(field, "cannot be encoded as JSON: %v", err)
	case len(raw) > maxParams:
		p.add(field, "has %d bytes, at most %d are allowed", len(raw), maxParams)
	case strings.Contains(string(raw), `\u0000`):
		p.add(field, "contains a NUL character")
	}
	return raw
}

func checkContent(p *problems, req Request) {
	if req.Payload.IsZero() {
		p.join(&destination.FieldError{Path: p.path + "payload", Code: "required", Message: "is required"})
		return
	}
	if err := req.Payload.Err(); err != nil {
		p.add("payload", "%v", err)
		return
	}
	p.text("payload.name", req.Payload.Name(), maxText)
	p.text("payload.content_type", req.Payload.ContentType(), maxText)
}

func checkLabels(p *problems, req Request) {
	p.text("topic", req.Topic, maxTopic)
	p.text("idempotency_key", req.IdempotencyKey, maxText)
	p.text("correlation_id", req.CorrelationID, maxText)
	p.text("trace_parent", req.TraceParent, maxText)
	checkTags(p, "tags", req.Tags)
	checkTags(p, "destination_tags", req.DestinationTags)
	size := 0
	for k, v := range req.Metadata {
		size += len(k) + len(v)
		if problem := badText(k + v); problem != "" {
			p.add(fmt.Sprintf("metadata[%q]", k), "%s", problem)
		}
	}
	if size > maxMetadataBytes || len(req.Metadata) > maxMetadata {
		p.add("metadata", "has %d entries of %d bytes, at most %d of %d are allowed",
			len(req.Metadata), size, maxMetadata, maxMetadataBytes)
	}
}

func checkTags(p *problems, field string, tags []string) {
	if len(tags) > maxTags {
		p.add(field, "has %d tags, at most %d are allowed", len(tags), maxTags)
	}
	for i, tag := range tags {
		p.text(fmt.Sprintf("%s[%d]", field, i), tag, maxTag)
	}
}

func checkTimes(p *problems, req Request, now time.Time) {
	checkNotBefore(p, "not_before", req.NotBefore, req.Deadline)
	if !req.Deadline.IsZero() && !req.Deadline.After(now) {
		p.add("deadline", "%s has passed", stamp(req.Deadline))
	}
	p.date("deadline", req.Deadline)
}

func checkNotBefore(p *problems, field string, notBefore, deadline time.Time) {
	if !deadline.IsZero() && !notBefore.IsZero() && !notBefore.Before(deadline) {
		p.add(field, "%s is not before the deadline, %s", stamp(notBefore), stamp(deadline))
	}
	p.date(field, notBefore)
}

func checkPriority(p *problems, field string, v Priority) {
	if v < Lowest || v > Highest {
		p.add(field, "%d is not between %d and %d", v, Lowest, Highest)
	}
}

// destinationIDs returns the ids in the form they are stored in, each once.
func destinationIDs(p *problems, given []string, limit int) (ids []string) {
	for i, id := range given {
		canonical, ok := sqlstore.CanonicalID(id)
		if !ok {
			p.add(fmt.Sprintf("destinations[%d]", i), "%q is not a destination id", id)
		} else if !slices.Contains(ids, canonical) {
			ids = append(ids, canonical)
		}
	}
	if len(ids) > limit {
		p.add("destinations", "names %d destinations, at most %d are allowed", len(ids), limit)
	}
	return ids
}

// checkOverrides returns the overrides by id in the form it is stored in.
func checkOverrides(p *problems, req Request, ids []string) map[string]Override {
	overrides := map[string]Override{}
	for id, v := range req.PerDestination {
		field := fmt.Sprintf("per_destination[%q]", id)
		canonical, ok := sqlstore.CanonicalID(id)
		if !ok || !slices.Contains(ids, canonical) {
			p.add(field, "is not among the request's destinations")
			continue
		}
		overrides[canonical] = v
		checkNotBefore(p, field+".not_before", v.NotBefore, req.Deadline)
		if v.Priority != nil {
			checkPriority(p, field+".priority", *v.Priority)
		}
		if err := v.Retry.Validate(); err != nil {
			p.add(field+".retry", "%v", err)
		}
	}
	return overrides
}
