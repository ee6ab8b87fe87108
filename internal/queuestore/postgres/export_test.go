package postgres

import (
	"fmt"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// Revive is the statement of Native.Revive.
func Revive() string { return revive }

// Ends are the statements of Native.End: those for items anywhere, and those for items that are
// where the claim left them.
func Ends() (anywhere, placed [2]string) {
	return [2]string{end, endDetailed}, [2]string{endPlaced, endDetailedPlaced}
}

// Claim is the statement of Native.Claim.
func Claim() string { return claim }

// Placed is the index of a statement that finds rows by their places alone.
const Placed = "place"

// Statement is a statement of the queue with arguments as literals, and the index of delivery_queue
// that it must use.
type Statement struct {
	Query string
	Args  []string
	Index string
}

const (
	id  = "'00000000-0000-7000-8000-000000000000'"
	ids = "'{00000000-0000-7000-8000-000000000000,00000000-0000-7000-8000-000000000001}'"
)

// Statements are the static statements on the queue, by the name of their file.
func Statements() map[string]Statement {
	const (
		now    = "'2026-01-01 00:00:00+00'"
		org    = "'{acme,other}'"
		two    = "'{1,2}'"
		three  = "'{1,2,3}'"
		words  = "'{a,b}'"
		nulls  = "'{null,null}'"
		dates  = "'{2026-01-01,2026-01-02}'"
		places = `'{"(0,1)","(0,2)"}'`

		ready    = "delivery_queue_ready"
		primary  = "delivery_queue_pkey"
		gated    = "delivery_queue_gated"
		deadline = "delivery_queue_deadline"
	)
	keyed := func(more ...string) []string { return append([]string{org, ids, two, two}, more...) }
	detailed := func(more ...string) []string {
		return append(keyed(ids, two, two, now, two, two, two, two, words, words, nulls, nulls), more...)
	}
	return map[string]Statement{
		"ranks":                  {ranks, []string{two}, ready},
		"walk":                   {walk, []string{"0", "1099511627776", "500", two}, ready},
		"claim":                  {claim, []string{three, "'{100,100,100}'", "7", "'{1}'", "'{2}'", "'{0,5,7}'"}, ready},
		"end":                    {end, keyed(ids, two, two, now), primary},
		"end_detailed":           {endDetailed, detailed(), primary},
		"end_placed":             {endPlaced, keyed(ids, two, two, now, places), Placed},
		"end_detailed_placed":    {endDetailedPlaced, detailed(places), Placed},
		"append_attempts":        {appendAttempts, detailed(dates), ""},
		"reschedule":             {reschedule, keyed(two, dates, two, two), primary},
		"revive":                 {revive, keyed(two, dates, now), ""},
		"in_flight":              {inFlight, []string{two, org}, gated},
		"in_flight_of":           {inFlightOf, []string{"'acme'"}, gated},
		"due":                    {due, []string{now, "1000", "'-infinity'"}, "delivery_queue_due"},
		"overdue":                {overdue, []string{now, "1000", "'-infinity'"}, deadline},
		"pending_of_delivery":    {pendingOfDelivery, []string{"'acme'", id, "100"}, primary},
		"pending_of_destination": {pendingOfDestination, []string{"'acme'", "1", "100"}, ""},
	}
}

// Enqueue is one shape of the statement that enqueues.
type Enqueue struct {
	Name string
	Statement
}

// Enqueues are the shapes of the statement that enqueues: one with each of the parts that a batch
// can need, one without any, and one with all.
func Enqueues() []Enqueue {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	plain := queuestore.NewDelivery{
		DeliveryRow: sqlstore.DeliveryRow{
			ID: strings.Trim(id, "'"),
			Payload: sqlstore.Payload{
				Inline: []byte{1}, Info: payload.Info{ContentType: "text/plain", SHA256: strings.Repeat("ab", 32)},
			},
		},
		Items: []queuestore.NewItem{{Destination: strings.Trim(id, "'")}}, MaxDestinations: 50,
	}
	with := func(change func(d *queuestore.NewDelivery)) queuestore.NewDelivery {
		d := plain
		change(&d)
		return d
	}
	keyed := with(func(d *queuestore.NewDelivery) { d.IdempotencyKey, d.Fingerprint = "k", []byte{1} })
	timed := with(func(d *queuestore.NewDelivery) {
		d.Deadline = at
		d.Items = []queuestore.NewItem{{Destination: d.Items[0].Destination, NotBefore: at}}
	})
	stored := with(func(d *queuestore.NewDelivery) { d.Payload.Inline, d.Payload.ID = nil, d.ID })
	referenced := with(func(d *queuestore.NewDelivery) {
		d.Payload = sqlstore.Payload{Info: payload.Info{ContentType: "text/plain"}, Source: "s", Ref: "r"}
	})
	impossible := with(func(d *queuestore.NewDelivery) { d.MaxDestinations = 0 })
	full := with(func(d *queuestore.NewDelivery) {
		d.IdempotencyKey, d.Fingerprint, d.Deadline, d.Fallback = "k", []byte{1}, at, true
		d.Topic, d.CorrelationID, d.TraceParent, d.Priority = "t", "c", "p", 1
		d.Tags, d.Metadata, d.Options.Test = []string{"a"}, map[string]string{"a": "b"}, true
		d.Payload.Name, d.Payload.ID, d.Payload.Source, d.Payload.Ref = "n", d.ID, "s", "r"
		d.Items = timed.Items
	})
	return []Enqueue{
		enqueueing("plain", plain, plain), enqueueing("keyed", keyed), enqueueing("timed", timed),
		enqueueing("stored", stored), enqueueing("referenced", referenced), enqueueing("impossible", impossible),
		enqueueing("full", plain, full),
	}
}

func enqueueing(name string, batch ...queuestore.NewDelivery) Enqueue {
	query, args, err := enqueue("acme", time.Time{}, batch)
	if err != nil {
		panic(err)
	}
	s := Enqueue{Name: name, Statement: Statement{Query: query}}
	for _, arg := range args {
		switch v := arg.(type) {
		case nil:
			s.Args = append(s.Args, "null")
		case []byte:
			s.Args = append(s.Args, fmt.Sprintf(`'\x%x'`, v))
		default:
			s.Args = append(s.Args, "'"+strings.ReplaceAll(fmt.Sprint(v), "'", "''")+"'")
		}
	}
	return s
}
