package systemtest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// called is one call of a public method of what svc.Org returns.
type called struct {
	ctx context.Context //nolint:containedctx // of this one call
	org *delivery.Org
	ds  *delivery.Destinations
	id  string // a destination's or a delivery's, as the row of the matrix says
	own string // a destination of the organization that is called for
	db  *sql.DB
}

// method is a row of the matrix.
type method struct {
	takes   string // the kind of id that it is given: "destination", "delivery", another kind, or "" for none
	quiet   bool   // a foreign id is no security event: only destinations and deliveries are
	selects bool   // the id only selects: a foreign one selects nothing, and is no error
	call    func(c called) (any, error)
}

func only[T any](f func(c called) (T, error)) func(c called) (any, error) {
	return func(c called) (any, error) { return f(c) }
}

func none(f func(c called) error) func(c called) (any, error) {
	return func(c called) (any, error) { return nil, f(c) }
}

func sent(c called) delivery.Request {
	return delivery.Request{Payload: payload.JSON(1), Destinations: []string{c.id}}
}

func inTx(f func(c called, tx delivery.Tx) (any, error)) func(c called) (any, error) {
	return func(c called) (any, error) {
		tx, err := c.db.BeginTx(c.ctx, nil)
		if err != nil {
			return nil, err
		}
		v, err := f(c, tx)
		return v, errors.Join(err, tx.Rollback())
	}
}

// matrix has a row for each public method; further rows of a method have a suffix in brackets.
var matrix = map[string]method{
	"Org.Status":  {takes: "delivery", call: only(func(c called) (*delivery.Status, error) { return c.org.Status(c.ctx, c.id) })},
	"Org.WaitFor": {takes: "delivery", call: only(func(c called) (*delivery.Status, error) { return c.org.WaitFor(c.ctx, c.id) })},
	"Org.Explain": {takes: "delivery", call: only(func(c called) ([]queue.Explanation, error) { return c.org.Explain(c.ctx, c.id) })},
	"Org.Cancel":  {takes: "delivery", call: none(func(c called) error { return c.org.Cancel(c.ctx, c.id) })},
	"Org.Retry":   {takes: "delivery", call: none(func(c called) error { return c.org.Retry(c.ctx, c.id) })},
	"Org.Replay":  {takes: "delivery", call: only(func(c called) (*delivery.Receipt, error) { return c.org.Replay(c.ctx, delivery.Replay{Delivery: c.id}) })},
	"Org.Deliver": {takes: "destination", call: only(func(c called) (*delivery.Receipt, error) { return c.org.Deliver(c.ctx, sent(c)) })},
	"Org.Deliver (own and foreign)": {takes: "destination", call: only(func(c called) (*delivery.Receipt, error) {
		r := sent(c)
		r.Destinations = append(r.Destinations, c.own)
		return c.org.Deliver(c.ctx, r)
	})},
	"Org.Deliver (override)": {takes: "destination", call: only(func(c called) (*delivery.Receipt, error) {
		r := sent(c)
		r.PerDestination = map[string]delivery.Override{c.id: {Params: map[string]int{"a": 1}}}
		return c.org.Deliver(c.ctx, r)
	})},
	"Org.Deliver (payload)": {takes: "staged payload", quiet: true, call: only(func(c called) (*delivery.Receipt, error) {
		return c.org.Deliver(c.ctx, delivery.Request{Payload: payload.Ref(payload.StagedSource, c.id), Destinations: []string{c.own}})
	})},
	"Org.DeliverMany": {takes: "destination", call: only(func(c called) ([]*delivery.Receipt, error) {
		return c.org.DeliverMany(c.ctx, []delivery.Request{sent(c)})
	})},
	"Org.DeliverTx": {takes: "destination", call: inTx(func(c called, tx delivery.Tx) (any, error) { return c.org.DeliverTx(c.ctx, tx, sent(c)) })},
	"Org.DeliverManyTx": {takes: "destination", call: inTx(func(c called, tx delivery.Tx) (any, error) {
		return c.org.DeliverManyTx(c.ctx, tx, []delivery.Request{sent(c)})
	})},
	"Org.Stage": {call: func(c called) (any, error) {
		_, err := c.org.Stage(c.ctx, payload.JSON(1))
		return nil, err
	}},
	"Org.SecurityEvents": {call: func(c called) (any, error) {
		page, err := c.org.SecurityEvents(c.ctx, "")
		if c.org == nil || err != nil {
			return nil, err
		}
		return len(page.Items), nil
	}},
	"Org.Subscribe": {call: func(c called) (any, error) {
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		ch := c.org.Subscribe(ctx, event.Filter{})
		select {
		case e, open := <-ch:
			if !open {
				return nil, delivery.ErrNotFound // it has no other way to say so
			}
			return e, nil
		default:
			return nil, nil
		}
	}},
	"Queue.Stats":  {call: only(func(c called) (*queue.Stats, error) { return c.org.Queue().Stats(c.ctx) })},
	"Queue.Pause":  {call: none(func(c called) error { return c.org.Queue().Pause(c.ctx) })},
	"Queue.Resume": {call: none(func(c called) error { return c.org.Queue().Resume(c.ctx) })},

	"DeadLetters.List": {takes: "destination", selects: true, call: only(func(c called) (delivery.Page[delivery.DeadLetter], error) {
		return c.org.DeadLetters().List(c.ctx, delivery.DeadFilter{Destination: c.id}, "")
	})},
	"DeadLetters.List (all)": {call: only(func(c called) (delivery.Page[delivery.DeadLetter], error) {
		return c.org.DeadLetters().List(c.ctx, delivery.DeadFilter{}, "")
	})},
	"DeadLetters.Count": {takes: "destination", selects: true, call: only(func(c called) (int, error) {
		return c.org.DeadLetters().Count(c.ctx, delivery.DeadFilter{Destination: c.id})
	})},
	"DeadLetters.Retry": {takes: "destination", selects: true, call: only(func(c called) (delivery.Retried, error) {
		return c.org.DeadLetters().Retry(c.ctx, delivery.DeadFilter{Destination: c.id})
	})},
	"DeadLetters.Retry (all)": {call: only(func(c called) (delivery.Retried, error) {
		return c.org.DeadLetters().Retry(c.ctx, delivery.DeadFilter{All: true})
	})},
	"DeadLetters.Purge": {takes: "destination", selects: true, call: only(func(c called) (int, error) {
		return c.org.DeadLetters().Purge(c.ctx, delivery.DeadFilter{Destination: c.id})
	})},
	"DeadLetters.Purge (all)": {call: only(func(c called) (int, error) {
		return c.org.DeadLetters().Purge(c.ctx, delivery.DeadFilter{All: true})
	})},

	"Destinations.Get": {takes: "destination", call: only(func(c called) (*destination.Destination, error) { return c.ds.Get(c.ctx, c.id) })},
	"Destinations.Update": {takes: "destination", call: only(func(c called) (*destination.Destination, error) {
		return c.ds.Update(c.ctx, c.id, destination.Patch{Label: destination.Set("x")})
	})},
	"Destinations.Delete":         {takes: "destination", call: none(func(c called) error { return c.ds.Delete(c.ctx, c.id, destination.CancelPending) })},
	"Destinations.Delete (drain)": {takes: "destination", call: none(func(c called) error { return c.ds.Delete(c.ctx, c.id, destination.DrainPending) })},
	"Destinations.Duplicate":      {takes: "destination", call: only(func(c called) (*destination.Destination, error) { return c.ds.Duplicate(c.ctx, c.id, "") })},
	"Destinations.Test":           {takes: "destination", call: only(func(c called) (*destination.TestReport, error) { return c.ds.Test(c.ctx, c.id) })},
	"Destinations.TestPatch": {takes: "destination", call: only(func(c called) (*destination.TestReport, error) {
		return c.ds.TestPatch(c.ctx, c.id, destination.Patch{})
	})},
	"Destinations.ValidatePatch": {takes: "destination", call: only(func(c called) ([]*destination.FieldError, error) {
		return c.ds.ValidatePatch(c.ctx, c.id, destination.Patch{})
	})},
	"Destinations.Sample":         {takes: "destination", call: only(func(c called) (*delivery.Receipt, error) { return c.ds.Sample(c.ctx, c.id, "t") })},
	"Destinations.Enable":         {takes: "destination", call: only(func(c called) (*destination.Destination, error) { return c.ds.Enable(c.ctx, c.id) })},
	"Destinations.Disable":        {takes: "destination", call: only(func(c called) (*destination.Destination, error) { return c.ds.Disable(c.ctx, c.id, "") })},
	"Destinations.Pause":          {takes: "destination", call: none(func(c called) error { return c.ds.Pause(c.ctx, c.id) })},
	"Destinations.Resume":         {takes: "destination", call: none(func(c called) error { return c.ds.Resume(c.ctx, c.id) })},
	"Destinations.OpenBreaker":    {takes: "destination", call: none(func(c called) error { return c.ds.OpenBreaker(c.ctx, c.id) })},
	"Destinations.CloseBreaker":   {takes: "destination", call: none(func(c called) error { return c.ds.CloseBreaker(c.ctx, c.id) })},
	"Destinations.Health":         {takes: "destination", call: only(func(c called) (*destination.HealthReport, error) { return c.ds.Health(c.ctx, c.id, 0) })},
	"Destinations.SigningSecrets": {takes: "destination", call: only(func(c called) ([]destination.Secret, error) { return c.ds.SigningSecrets(c.ctx, c.id) })},
	"Destinations.RotateSecret": {takes: "destination", call: only(func(c called) (destination.Secret, error) {
		return c.ds.RotateSecret(c.ctx, c.id, destination.Rotation{})
	})},
	"Destinations.Create": {call: func(c called) (any, error) {
		_, err := c.ds.Create(c.ctx, destination.Spec{Label: "new", Config: testkit.Locked{Name: "n"}})
		return nil, err
	}},
	"Destinations.Validate": {call: only(func(c called) ([]*destination.FieldError, error) {
		return c.ds.Validate(c.ctx, destination.Spec{Label: "new", Config: testkit.Locked{Name: "n"}})
	})},
	"Destinations.TestSpec": {call: func(c called) (any, error) {
		_, err := c.ds.TestSpec(c.ctx, destination.Spec{Label: "new", Config: testkit.Locked{Name: "n"}})
		return nil, err
	}},
	"Destinations.Defaults": {call: only(func(c called) (delivery.DefaultRoute, error) { return c.ds.Defaults(c.ctx, "t") })},
	"Destinations.List": {call: only(func(c called) (delivery.Page[*destination.Destination], error) {
		return c.ds.List(c.ctx, delivery.DestinationFilter{}, "")
	})},
	"Destinations.All": {call: func(c called) (any, error) {
		var all []*destination.Destination
		for d, err := range c.ds.All(c.ctx, delivery.DestinationFilter{}) {
			if err != nil {
				return nil, err
			}
			all = append(all, d)
		}
		return all, nil
	}},
}

// Every public method that an organization leads to is in the matrix, and the matrix has no others.
func TestMatrixIsComplete(t *testing.T) {
	t.Parallel()
	want := map[string]bool{}
	var visit func(of reflect.Type)
	seen := map[reflect.Type]bool{}
	visit = func(of reflect.Type) {
		if seen[of] {
			return
		}
		seen[of] = true
		for i := range of.NumMethod() {
			m := of.Method(i)
			if m.Type.NumIn() == 1 && m.Type.NumOut() == 1 && m.Type.Out(0).Kind() == reflect.Pointer {
				visit(m.Type.Out(0)) // Org.Destinations and its like
				continue
			}
			want[of.Elem().Name()+"."+m.Name] = true
		}
	}
	visit(reflect.TypeFor[*delivery.Org]())
	if len(seen) < 4 {
		t.Errorf("only %d types were found", len(seen))
	}
	have := map[string]bool{}
	for name := range matrix {
		name, _, _ = strings.Cut(name, " ")
		have[name] = true
		if !want[name] {
			t.Errorf("there is no method %s", name)
		}
	}
	for name := range want {
		if !have[name] {
			t.Errorf("%s is not in the matrix: say what it answers to a foreign id and a foreign actor", name)
		}
	}
}

// world is what the calls of the matrix reach for: all of it acme's.
type world struct {
	svc *delivery.DeliveryService
	ids map[string]string // by kind
	own string            // a destination of the other organization's
}

const label = "The label of acme alone"

func newWorld(t *testing.T, db *sql.DB) *world {
	t.Helper()
	v := &testkit.Vault{}
	v.Do = func(context.Context, *handler.Request) (*handler.Result, error) { return nil, errors.New("no") }
	svc := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("vault", v), delivery.WithAuthorizer(access.ByRole()))
	acme := svc.Org("acme")
	d := testkit.CreateVault(t, acme, destination.Spec{Label: label, Default: true, Config: testkit.Locked{
		Name: "n", Token: destination.NewSecret("s3cret"), Secrets: []destination.Secret{destination.NewSecret("first")},
	}})
	dead := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1), Retry: retry.Policy{Retries: retry.None}})).Must(t)
	testkit.Process(t, svc)
	if testkit.CountDead(t, acme, delivery.DeadFilter{}) != 1 {
		t.Fatal("there is no dead letter")
	}
	testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t) // it waits
	staged := testkit.Try(acme.Stage(t.Context(), payload.JSON(1))).Must(t)
	_, ref, _ := staged.Ref()
	own := testkit.Create(t, svc.Org("other"), destination.Spec{Config: testkit.Script{Name: "n"}})
	return &world{svc, map[string]string{"destination": d.ID, "delivery": dead.ID, "staged payload": ref}, own.ID}
}

func (w *world) call(ctx context.Context, db *sql.DB, organization, id string, m method) (any, error) {
	org := w.svc.Org(organization)
	return m.call(called{ctx: ctx, org: org, ds: org.Destinations(), id: id, own: w.own, db: db})
}

// events are acme's security events of an actor.
func (w *world) events(t *testing.T, actor string) (all []delivery.SecurityEvent) {
	t.Helper()
	for after := ""; ; {
		page := testkit.Try(w.svc.Org("acme").SecurityEvents(t.Context(), after)).Must(t)
		for _, e := range page.Items {
			if e.Actor == actor {
				all = append(all, e)
			}
		}
		if after = page.Next; after == "" {
			return all
		}
	}
}

func (w *world) leaks(text string) bool {
	return strings.Contains(text, label) || slices.ContainsFunc([]string{"destination", "delivery"}, func(kind string) bool {
		return strings.Contains(text, w.ids[kind])
	})
}

// Who calls for another organization, with the ids of this one, is answered as if there were
// nothing of that id.
func TestForeignIDsMatrix(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		w := newWorld(t, db)
		before := testkit.Dump(t, db)
		for name, m := range matrix {
			actor := access.Actor{ID: "insider of other: " + name, Roles: map[string]access.Role{"other": access.Admin}}
			ctx, cancel := context.WithTimeout(access.WithActor(t.Context(), actor), time.Minute)
			defer cancel()
			if m.takes == "" { // what it shows and changes is the organization's own: see below
				continue
			}
			id := w.ids[m.takes]
			got, err := w.call(ctx, db, "other", id, m)
			never := testkit.Try(uuid.NewV7()).Must(t).String()
			same, sameErr := w.call(ctx, db, "other", never, m)
			if text := strings.ReplaceAll(testkit.JSON(t, got), id, never); text != testkit.JSON(t, same) || w.leaks(text) {
				t.Errorf("%s: returned %s, and %+v for an id that never was", name, text, same)
			}
			switch {
			case m.selects:
				if err != nil || sameErr != nil {
					t.Errorf("%s: %v, %v", name, err, sameErr)
				}
			case !errors.Is(err, delivery.ErrNotFound) || !errors.Is(sameErr, delivery.ErrNotFound):
				t.Errorf("%s: %v; an id that never was: %v", name, err, sameErr)
			case strings.ReplaceAll(err.Error(), id, never) != sameErr.Error() || strings.Contains(err.Error(), "acme"):
				t.Errorf("%s: %v; an id that never was: %v", name, err, sameErr)
			}
			events := w.events(t, actor.ID)
			switch {
			case m.quiet && len(events) == 0:
			case m.quiet || len(events) != 1:
				t.Errorf("%s: security events are %+v", name, events)
			case events[0].Kind != delivery.ForeignID || events[0].Subject != m.takes || events[0].SubjectID != id || events[0].From != "other" ||
				events[0].Action == "" || events[0].At.IsZero():
				t.Errorf("%s: the security event is %+v", name, events[0])
			}
		}
		if after := testkit.Dump(t, db); after != before {
			t.Errorf("something changed:\n%s\n%s", before, after)
		}
		if page := testkit.Try(w.svc.Org("other").SecurityEvents(t.Context(), "")).Must(t); len(page.Items) != 0 {
			t.Errorf("the events are told to who made them: %+v", page.Items)
		}
	})
}

// What takes no id shows and changes nothing of another organization's.
func TestOrganizationsSeeTheirOwn(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		w := newWorld(t, db)
		acme := w.svc.Org("acme")
		state := func() string {
			d := testkit.Try(acme.Destinations().Get(t.Context(), w.ids["destination"])).Must(t)
			stats := testkit.Try(acme.Queue().Stats(t.Context())).Must(t)
			text := fmt.Sprint(stats.Ready, stats.Scheduled, stats.Processing, stats.Held)
			return fmt.Sprintf("%+v %s %d", d, text, testkit.CountDead(t, acme, delivery.DeadFilter{}))
		}
		before := state()
		for name, m := range matrix {
			if m.takes != "" {
				continue
			}
			got, err := w.call(t.Context(), db, "other", "", m)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if text := testkit.JSON(t, got); w.leaks(text) {
				t.Errorf("%s: returned %s", name, text)
			}
		}
		if after := state(); after != before {
			t.Errorf("acme's were %s, and are %s", before, after)
		}
	})
}

// Who does not belong to an organization cannot tell it from one that is not there, and is noted.
func TestForeignActorsMatrix(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		w := newWorld(t, db)
		before := testkit.Dump(t, db)
		for name, m := range matrix {
			actor := access.Actor{ID: "intruder: " + name, Roles: map[string]access.Role{"other": access.Admin}}
			ctx, cancel := context.WithTimeout(access.WithActor(t.Context(), actor), time.Minute)
			defer cancel()
			got, err := w.call(ctx, db, "acme", w.ids[m.takes], m)
			never, neverErr := w.call(ctx, db, "nobody", testkit.Try(uuid.NewV7()).Must(t).String(), m)
			if !errors.Is(err, delivery.ErrNotFound) || !errors.Is(neverErr, delivery.ErrNotFound) ||
				strings.ReplaceAll(err.Error(), "acme", "nobody") != neverErr.Error() {
				t.Errorf("%s: %v; for an organization that never was: %v", name, err, neverErr)
			}
			if text := testkit.JSON(t, got); text != testkit.JSON(t, never) || w.leaks(text) {
				t.Errorf("%s: returned %s", name, text)
			}
			if events := w.events(t, actor.ID); len(events) != 1 || events[0].Kind != delivery.ForeignActor || events[0].Action == "" {
				t.Errorf("%s: security events are %+v", name, events)
			}
		}
		if after := testkit.Dump(t, db); after != before {
			t.Errorf("something changed:\n%s\n%s", before, after)
		}
	})
}

// A role that permits nothing is told so by every method, without a change; and with
// WithActorRequired nobody calls unnamed.
func TestDeniedActorsMatrix(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		w := newWorld(t, db)
		strict := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("vault", &testkit.Vault{}), delivery.WithActorRequired())
		before := testkit.Dump(t, db)
		for name, m := range matrix {
			actor := access.Actor{ID: "trainee: " + name, Roles: map[string]access.Role{"acme": "trainee"}}
			ctx := access.WithActor(t.Context(), actor)
			_, err := w.call(ctx, db, "acme", w.ids[m.takes], m)
			unnamed := *w
			unnamed.svc = strict
			_, strictErr := unnamed.call(t.Context(), db, "acme", w.ids[m.takes], m)
			if name == "Org.Subscribe" { // a closed channel
				if err == nil || strictErr == nil {
					t.Errorf("%s: %v, %v", name, err, strictErr)
				}
			} else if !errors.Is(err, access.ErrDenied) || !errors.Is(strictErr, access.ErrDenied) {
				t.Errorf("%s: %v; unnamed: %v", name, err, strictErr)
			}
			if events := w.events(t, actor.ID); len(events) != 1 || events[0].Kind != delivery.DeniedActor {
				t.Errorf("%s: security events are %+v", name, events)
			}
		}
		if after := testkit.Dump(t, db); after != before {
			t.Errorf("something changed:\n%s\n%s", before, after)
		}
	})
}
