// Package queuetest has the shapes of statements on dead letters, which the tests of both databases
// explain.
package queuetest

import (
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqltest"
	"github.com/deliverykit/delivery/queue"
)

// Ids that the shapes of statements on dead letters name.
const (
	Delivery    = "00000000-0000-7000-8000-000000000100"
	Destination = "00000000-0000-7000-9000-000000000001"
)

// DeadLetters is a shape of a statement on dead letters, with parameters.
type DeadLetters struct {
	sqltest.Shape
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
		f    queuestore.DeadFilter
	}{
		{"all", queuestore.DeadFilter{}},
		{"one destination", queuestore.DeadFilter{Destination: Destination}},
		{"one delivery", queuestore.DeadFilter{Delivery: Delivery}},
		{"all criteria", queuestore.DeadFilter{
			Destination: Destination, Topic: "x", Reasons: []queue.Reason{queue.Permanent},
			From: at, Before: at.Add(time.Hour), Until: at,
		}},
	}
	pages := []struct {
		name string
		p    queuestore.DeadPage
	}{
		{"first", queuestore.DeadPage{Descending: true, Limit: 101}},
		{"next", queuestore.DeadPage{Descending: true, Limit: 101, After: &last}},
		{"to change", queuestore.DeadPage{Limit: 500, Lock: true}},
		{"to change, next", queuestore.DeadPage{Limit: 500, Lock: true, After: &last}},
	}
	for _, filter := range filters {
		add := func(name, query string, args []any, purge bool) {
			s := sqltest.Shape{Name: filter.name + ", " + name, Query: d.Rebind(query)}
			all = append(all, DeadLetters{s, args, filter.f.Destination != "", purge})
		}
		for _, page := range pages {
			query, args := queuestore.DeadQuery(d, "acme", filter.f, page.p)
			add(page.name, query, args, false)
		}
		query, args := queuestore.PurgeQuery(d, "acme", filter.f, &last, last)
		add("purge", query, args, true)
	}
	return all
}
