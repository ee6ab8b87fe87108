package postgres

import (
	"fmt"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// Revive is the statement of Dialect.Revive.
const Revive = revive

// Placed is the index of what goes by the places of rows alone.
const Placed = "place"

// Statement is a statement of the queue with arguments as literals, and the index of delivery_queue it must go by.
type Statement struct {
	Query string
	Args  []string
	Index string
}

// Statements are all that work on the queue, by name.
func Statements() map[string]Statement {
	const (
		now = "'2026-01-01 00:00:00+00'"
		org = "'{acme,other}'"
		ids = "'{00000000-0000-7000-8000-000000000000,00000000-0000-7000-8000-000000000001}'"
		id  = "'00000000-0000-7000-8000-000000000000'"
		two = "'{1,2}'"

		places = `'{"(0,1)","(0,2)"}'`
	)
	keys := []string{org, ids, two, two}
	with := func(more ...string) []string { return append(keys[:4:4], more...) }
	plain := sqlstore.NewDelivery{
		Delivery: sqlstore.Delivery{ID: strings.Trim(id, "'"), Payload: sqlstore.Payload{Inline: []byte{1}, Info: payload.Info{SHA256: strings.Repeat("ab", 32)}}},
		Items:    []sqlstore.NewItem{{Destination: strings.Trim(id, "'")}}, Most: 50,
	}
	full := plain
	full.Fallback, full.IdempotencyKey, full.Fingerprint, full.Topic = true, "k", []byte{1}, "t"
	full.NotBefore, full.Deadline = time.Now(), time.Now()
	return map[string]Statement{
		"enqueue, plain":         enqueueing(plain, plain),
		"enqueue":                enqueueing(plain, full),
		"ranks":                  {ranks, []string{two}, "delivery_queue_ready"},
		"walk":                   {walk, []string{"0", "1099511627776", "500", two}, "delivery_queue_ready"},
		"claim":                  {claim, []string{"'{1,2,3}'", "'{100,100,100}'", "7", "'{1}'", "'{2}'", "'{0,5,7}'"}, "delivery_queue_ready"},
		"end, plain":             {endPlain, with(ids, two, two, now), "delivery_queue_pkey"},
		"end, detailed":          {endDetailed, with(ids, two, two, now, two, two, two, two, "'{a,b}'", "'{a,b}'", "'{null,null}'", "'{null,null}'"), "delivery_queue_pkey"},
		"end, placed":            {endPlaced, with(ids, two, two, now, places), Placed},
		"end, placed, detailed":  {endPlacedFully, with(ids, two, two, now, two, two, two, two, "'{a,b}'", "'{a,b}'", "'{null,null}'", "'{null,null}'", places), Placed},
		"reschedule":             {reschedule, with(two, "'{2026-01-01,2026-01-02}'", two, two), "delivery_queue_pkey"},
		"in flight":              {inFlight, []string{"'{1,2}'", org}, "delivery_queue_gated"},
		"in flight of all":       {inFlightOf, []string{"'acme'"}, "delivery_queue_gated"},
		"leased":                 {sqlstore.Leased + ` for update skip locked`, []string{"1", "1", "1000", "7", "1000"}, "delivery_queue_ready"},
		"due":                    {due, []string{now, "1000", "'-infinity'"}, "delivery_queue_due"},
		"overdue":                {overdue, []string{now, "1000", "'-infinity'"}, "delivery_queue_deadline"},
		"pending of delivery":    {pendingOfDelivery, []string{"'acme'", id, "100"}, "delivery_queue_pkey"},
		"pending of destination": {pendingOfDestination, []string{"'acme'", "1", "100"}, ""},
	}
}

// enqueueing is the statement that enqueues a batch.
func enqueueing(batch ...sqlstore.NewDelivery) Statement {
	query, args, err := enqueue("acme", time.Time{}, batch)
	if err != nil {
		panic(err)
	}
	s := Statement{Query: query}
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
