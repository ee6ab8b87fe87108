package deliverytest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// typ is the type of scripted destinations.
const typ = "scripted"

// config leads from a stored destination to its script.
type config struct {
	Script int `json:"script"`
}

func (config) DestinationType() string { return typ }

// Destination is a destination that follows a script and records what it receives. Its methods may
// be called from any goroutine, except for the Require methods, which belong to the test's own.
type Destination struct {
	kit          *Kit
	id           string
	organization string
	label        string

	mu       sync.Mutex
	script   script
	attempts []Attempt
}

// Attempt is the record of one attempt at a scripted destination.
type Attempt struct {
	At         time.Time // when it began, on the kit's clock
	Number     int       // among its item's attempts, from 1; after a crash the next one has the same number
	MessageID  string    // the same in all attempts at an item
	DeliveryID string
	ItemID     string
	Topic      string
	Metadata   map[string]string
	Params     json.RawMessage // the request's Override.Params for this destination
	Payload    payload.Info
	Content    []byte
	Step       string // the step of the script, as it is written there
	Err        error  // returned by the step; nil if it took the delivery
}

// The values of Attempt.Err that no step returned.
var (
	errUnderWay   = errors.New("deliverytest: the attempt is still under way")
	errUnscripted = errors.New("deliverytest: the attempt is not scripted")
	errPanicked   = errors.New("deliverytest: the step did not return: it panicked, or ended its goroutine")
)

// Destination creates a destination of an organization that follows a script: each attempt takes
// the next step. It is one of the organization's defaults, so a request that names no destination
// goes to it. Org.Destinations().Update changes other settings. Without a script it takes
// everything. An attempt after the last step fails the test, unless that step was [Always].
func (k *Kit) Destination(organization string, steps ...Step) *Destination {
	k.t.Helper()
	if len(steps) == 0 {
		steps = []Step{Always(OK())}
	}
	d := &Destination{kit: k, organization: organization, script: script{steps: slices.Clone(steps)}}
	if fault := d.script.check(); fault != "" {
		k.t.Fatalf("deliverytest: the script of a destination of %q: %s", organization, fault)
	}
	number := k.scripts.add(d)
	d.label = fmt.Sprintf("scripted %d", number)
	created, err := k.Org(organization).Destinations().Create(context.Background(), destination.Spec{
		Label: d.label, Config: config{number}, Default: true,
	})
	if err != nil {
		k.t.Fatalf("deliverytest: creating a destination of %q: %v", organization, err)
	}
	d.id = created.ID
	return d
}

// ID is the destination's id, as in Request.Destinations.
func (d *Destination) ID() string { return d.id }

// Organization is the owner of the destination.
func (d *Destination) Organization() string { return d.organization }

// Attempts returns the attempts recorded until now, in the order in which they began.
func (d *Destination) Attempts() []Attempt {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := slices.Clone(d.attempts)
	for i := range all {
		a := &all[i]
		a.Metadata, a.Params, a.Content = maps.Clone(a.Metadata), bytes.Clone(a.Params), bytes.Clone(a.Content)
	}
	return all
}

// scripts is the handler of a kit's scripted destinations.
type scripts struct {
	handler.Parser[config]
	kit *Kit

	mu           sync.Mutex
	destinations []*Destination // by number, from 1
}

func (s *scripts) add(d *Destination) (number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.destinations = append(s.destinations, d)
	return len(s.destinations)
}

func (s *scripts) get(number int) *Destination {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number < 1 || number > len(s.destinations) {
		return nil
	}
	return s.destinations[number-1]
}

// Deliver implements handler.Handler.
func (s *scripts) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	c, ok := req.Config.(config)
	d := s.get(c.Script)
	if !ok || d == nil || d.organization != req.Organization {
		s.kit.t.Errorf("deliverytest: destination %s of %q is of type %q, but Kit.Destination did not create it",
			req.Destination.ID, req.Organization, typ)
		return nil, handler.Permanent(errUnscripted)
	}
	return d.deliver(ctx, req)
}

// maxContent limits the recorded bytes of a payload.
const maxContent = 1 << 30

func (d *Destination) deliver(ctx context.Context, req *handler.Request) (result *handler.Result, err error) {
	content, err := req.Payload.ReadAll(ctx, maxContent)
	a := Attempt{
		At:         d.kit.Now(),
		Number:     req.Attempt,
		MessageID:  req.MessageID,
		DeliveryID: req.DeliveryID,
		ItemID:     req.ItemID,
		Topic:      req.Topic,
		Metadata:   maps.Clone(req.Metadata),
		Params:     bytes.Clone(req.Params),
		Payload:    req.Payload.Info(),
		Content:    content,
		Err:        errUnderWay,
	}
	if err != nil {
		a.Step, a.Err = "none", handler.Unreadable(err)
		d.record(a)
		return nil, a.Err
	}
	d.mu.Lock()
	s, scripted := d.script.next()
	a.Step = s.String()
	if !scripted {
		a.Step, a.Err = "none", errUnscripted
	}
	i := len(d.attempts)
	d.attempts = append(d.attempts, a)
	script := fmt.Sprintf("all %d attempts of its script have been made: %v", d.script.total, &d.script)
	d.mu.Unlock()
	if !scripted {
		d.kit.t.Errorf(
			"deliverytest: attempt %d at %s, topic %q, is not scripted: %s\n"+
				"end the script with Always if more may come\n%s",
			req.Attempt, req.ItemID, req.Topic, script, d.report(),
		)
		return nil, handler.Permanent(errUnscripted)
	}
	ended := errPanicked
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.attempts[i].Err = ended
	}()
	result, err = s.do(ctx, req)
	ended = err
	return result, err
}

func (d *Destination) record(a Attempt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attempts = append(d.attempts, a)
}
