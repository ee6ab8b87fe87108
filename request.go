package delivery

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// Request asks for one payload to be delivered. Only Payload is required.
type Request struct {
	Payload payload.Payload
	Topic   string // what it is about: "report.finished"
	// Destinations are ids. They, DestinationTags and Subscribers add up; a destination that is meant twice counts once.
	// Without any of the three, the organization's defaults for the topic are meant.
	Destinations    []string
	DestinationTags []string // destinations that have one of these tags
	Subscribers     bool     // destinations whose Subscription matches topic, tags and metadata
	// IdempotencyKey makes a repeated request harmless: the same key with the same request gives the first receipt,
	// with another request a *ConflictError, for 24 hours. Topic, content, destinations, tags, metadata, priority,
	// retry policy and overrides make up the request; its times, correlation id and trace context do not, because a
	// repetition has others.
	IdempotencyKey string
	CorrelationID  string
	TraceParent    string // W3C trace context, handed to handlers
	Tags           []string
	Metadata       map[string]string // handed to handlers; at most 64 entries and 16 KiB
	Priority       Priority
	NotBefore      time.Time // no attempt is made earlier
	Deadline       time.Time // dead rather than late
	Retry          retry.Policy
	PerDestination map[string]Override // by id, of Destinations
}

// Override is what a request sets for one of its destinations.
type Override struct {
	Params    any // for the handler, where its type takes any; encodes to JSON
	Priority  *Priority
	NotBefore time.Time
	Retry     retry.Policy
}

// Priority orders items: of what is ready, higher ones go first, though every eighth claim begins with the lowest, so
// that nothing starves. Zero is Normal.
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

const (
	keyLifetime     = 24 * time.Hour
	mostTags        = 32
	mostMetadata    = 64
	mostMetadataLen = 16 << 10
	mostParams      = 64 << 10
)

// prepared is a request that was found good, on its way into the database.
type prepared struct {
	sqlstore.NewDelivery
	request Request
	path    string // of the request, for errors: "" or "requests[2]."
	spooled bool   // its payload was stored before the transaction

	storeKey string // of the payload, where it is in the store
}

// prepare checks all of a request that can be checked without the database, and reports all that is wrong with it.
func (o *Org) prepare(req Request, path string) (*prepared, error) {
	p := &prepared{request: req, path: path}
	var errs []error
	invalid := func(field, format string, args ...any) {
		errs = append(errs, destination.Invalid(path+field, format, args...))
	}
	text := func(field, value string, most int) {
		if len(value) > most {
			invalid(field, "has %d bytes, at most %d are allowed", len(value), most)
		} else if problem := badText(value); problem != "" {
			invalid(field, "%s", problem)
		}
	}
	now := o.s.settings.Now()

	if req.Payload.IsZero() {
		errs = append(errs, &destination.FieldError{Path: path + "payload", Code: "required", Message: "is required"})
	} else if err := req.Payload.Err(); err != nil {
		invalid("payload", "%v", err)
	} else {
		text("payload.name", req.Payload.Name(), 255)
		text("payload.content_type", req.Payload.ContentType(), 255)
	}
	text("topic", req.Topic, 200)
	text("idempotency_key", req.IdempotencyKey, 255)
	text("correlation_id", req.CorrelationID, 255)
	text("trace_parent", req.TraceParent, 255)
	if len(req.Tags) > mostTags {
		invalid("tags", "has %d tags, at most %d are allowed", len(req.Tags), mostTags)
	}
	for i, tag := range req.Tags {
		text(fmt.Sprintf("tags[%d]", i), tag, 100)
	}
	if len(req.DestinationTags) > mostTags {
		invalid("destination_tags", "has %d tags, at most %d are allowed", len(req.DestinationTags), mostTags)
	}
	for i, tag := range req.DestinationTags {
		text(fmt.Sprintf("destination_tags[%d]", i), tag, 100)
	}
	size := 0
	for k, v := range req.Metadata {
		size += len(k) + len(v)
		if problem := badText(k + v); problem != "" {
			invalid(fmt.Sprintf("metadata[%q]", k), "%s", problem)
		}
	}
	if size > mostMetadataLen || len(req.Metadata) > mostMetadata {
		invalid("metadata", "has %d entries of %d bytes, at most %d of %d are allowed", len(req.Metadata), size, mostMetadata, mostMetadataLen)
	}
	checkTimes := func(field string, notBefore time.Time) {
		if !req.Deadline.IsZero() && !notBefore.IsZero() && !notBefore.Before(req.Deadline) {
			invalid(field, "%s is not before the deadline, %s", notBefore.UTC().Format(time.RFC3339), req.Deadline.UTC().Format(time.RFC3339))
		}
		if notBefore.Year() > 9998 {
			invalid(field, "the year %d is too far away", notBefore.Year())
		}
	}
	checkTimes("not_before", req.NotBefore)
	if !req.Deadline.IsZero() && !req.Deadline.After(now) {
		invalid("deadline", "%s has passed", req.Deadline.UTC().Format(time.RFC3339))
	}
	if req.Deadline.Year() > 9998 {
		invalid("deadline", "the year %d is too far away", req.Deadline.Year())
	}
	checkPriority := func(field string, v Priority) {
		if v < Lowest || v > Highest {
			invalid(field, "%d is not between %d and %d", v, Lowest, Highest)
		}
	}
	checkPriority("priority", req.Priority)
	if err := req.Retry.Validate(); err != nil {
		invalid("retry", "%v", err)
	}

	var ids []string
	for i, id := range req.Destinations {
		canonical, ok := canonicalID(id)
		if !ok {
			invalid(fmt.Sprintf("destinations[%d]", i), "%q is no destination id", id)
		} else if !slices.Contains(ids, canonical) {
			ids = append(ids, canonical)
		}
	}
	quotas := o.s.settings.Quotas
	if len(ids) > quotas.Destinations {
		invalid("destinations", "names %d destinations, at most %d are allowed", len(ids), quotas.Destinations)
	}
	overrides := map[string]Override{}
	for id, v := range req.PerDestination {
		field := fmt.Sprintf("per_destination[%q]", id)
		canonical, ok := canonicalID(id)
		if !ok || !slices.Contains(ids, canonical) {
			invalid(field, "is not among the request's destinations")
			continue
		}
		overrides[canonical] = v
		checkTimes(field+".not_before", v.NotBefore)
		if v.Priority != nil {
			checkPriority(field+".priority", *v.Priority)
		}
		if err := v.Retry.Validate(); err != nil {
			invalid(field+".retry", "%v", err)
		}
	}

	id, err := uuid.NewV7()
	errs = append(errs, err)
	p.Delivery = sqlstore.Delivery{
		Organization: o.name, ID: id.String(), Deadline: req.Deadline, Topic: req.Topic, Priority: int(req.Priority),
		IdempotencyKey: req.IdempotencyKey, CorrelationID: req.CorrelationID, TraceParent: req.TraceParent, Tags: req.Tags,
		Metadata: req.Metadata, Options: sqlstore.Options{Retry: req.Retry},
	}
	p.NotBefore, p.KeyExpires, p.Most = req.NotBefore, keyLifetime, quotas.Destinations
	p.Subscribers, p.Tagged = req.Subscribers, req.DestinationTags
	for i, id := range ids {
		item := sqlstore.NewItem{Destination: id, Priority: int(req.Priority), NotBefore: req.NotBefore}
		if v, ok := overrides[id]; ok {
			option := sqlstore.Option{Retry: v.Retry}
			if v.Priority != nil {
				item.Priority = int(*v.Priority)
			}
			if !v.NotBefore.IsZero() {
				item.NotBefore = v.NotBefore
			}
			if v.Params != nil {
				option.Params, err = json.Marshal(v.Params)
				switch {
				case err != nil:
					invalid(fmt.Sprintf("per_destination[%q].params", id), "cannot be encoded as JSON: %v", err)
				case len(option.Params) > mostParams:
					invalid(fmt.Sprintf("per_destination[%q].params", id), "has %d bytes, at most %d are allowed", len(option.Params), mostParams)
				case strings.Contains(string(option.Params), `\u0000`):
					invalid(fmt.Sprintf("per_destination[%q].params", id), "contains a NUL character")
				}
			}
			if p.Options.Items == nil {
				p.Options.Items = map[int]sqlstore.Option{}
			}
			p.Options.Items[i+1] = option
		}
		p.Items = append(p.Items, item)
	}
	return p, errors.Join(errs...)
}

// fingerprint identifies what a request asks for. The payload must be described by now.
func (p *prepared) fingerprint() {
	if p.IdempotencyKey == "" {
		return
	}
	ids := make([]string, len(p.Items))
	overrides := map[string]sqlstore.Option{}
	priorities := map[string]int{}
	for i, item := range p.Items {
		ids[i] = item.Destination
		overrides[item.Destination] = p.Options.Items[i+1]
		priorities[item.Destination] = item.Priority
	}
	slices.Sort(ids)
	request := map[string]any{
		"v": 1, "topic": p.Topic, "destinations": ids, "payload": p.Payload.SHA256, "source": p.Payload.Source, "ref": p.Payload.Ref,
		"tags": p.Tags, "metadata": p.Metadata, "priority": p.Priority, "retry": p.Options.Retry, "overrides": overrides,
		"priorities": priorities,
	}
	if p.Subscribers || len(p.Tagged) > 0 {
		request["subscribers"], request["tagged"] = p.Subscribers, p.Tagged
	}
	if p.Options.Test {
		request["test"] = true
	}
	if p.ReplayOf != "" {
		request["replay_of"] = p.ReplayOf
	}
	raw, _ := json.Marshal(request) // of plain data: it cannot fail
	sum := sha256.Sum256(raw)
	p.Fingerprint = sum[:]
}

// badText says what keeps text from being stored in every database, "" if nothing does.
func badText(s string) string {
	switch {
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "contains control characters"
	}
	return ""
}

// canonicalID returns an id as it is stored.
func canonicalID(id string) (string, bool) {
	if len(id) != 36 {
		return "", false
	}
	u, err := uuid.Parse(id)
	return u.String(), err == nil
}
