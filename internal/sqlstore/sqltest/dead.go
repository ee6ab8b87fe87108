package sqltest

import (
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
)

// Ids that the shapes of statements on dead letters name.
const (
	Delivery    = "00000000-0000-7000-8000-000000000100"
	Destination = "00000000-0000-7000-9000-000000000001"
)

// DeadLetters is a shape of a statement on dead letters, with parameters.
type DeadLetters struct {
	Shape
	Args          []any
	ByDestination bool // its filter names a destination
	Purge         bool // it removes them
}

// AllDeadLetters returns the shapes of lists, retries and purges of dead letters.
func AllDeadLetters(d sqlstore.Syntax) (all []DeadLetters) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	last := sqlstore.Key{Delivery: Delivery, N: 1}
	filters := []struct {
		name string
		f    sqlstore.DeadFilter
	}{
		{"all", sqlstore.DeadFilter{}},
		{"one destination", sqlstore.DeadFilter{Destination: Destination}},
		{"one delivery", sqlstore.DeadFilter{Delivery: Delivery}},
		{"all criteria", sqlstore.DeadFilter{
			Destination: Destination, Topic: "x", Reasons: []queue.Reason{queue.Permanent},
			From: at, Before: at.Add(time.Hour), Until: at,
		}},
	}
	pages := []struct {
		name string
		p    sqlstore.DeadPage
	}{
		{"first", sqlstore.DeadPage{Descending: true, Limit: 101}},
		{"next", sqlstore.DeadPage{Descending: true, Limit: 101, After: &last}},
		{"to change", sqlstore.DeadPage{Limit: 500, Lock: true}},
		{"to change, next", sqlstore.DeadPage{Limit: 500, Lock: true, After: &last}},
	}
	for _, filter := range filters {
		add := func(name, query string, args []any, purge bool) {
			s := Shape{Name: filter.name + ", " + name, Query: d.Rebind(query)}
			all = append(all, DeadLetters{s, args, filter.f.Destination != "", purge})
		}
		for _, page := range pages {
			query, args := sqlstore.DeadQuery(d, "acme", filter.f, page.p)
			add(page.name, query, args, false)
		}
		query, args := sqlstore.PurgeQuery(d, "acme", filter.f, &last, last)
		add("purge", query, args, true)
	}
	return all
}
