package main

import (
	"fmt"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
)

func contests(n int) []contest {
	sixteen, ordered := delivery.WithLimits(destination.Limits{Concurrency: 16}), delivery.WithLimits(destination.Limits{Ordered: true})
	var all []contest
	for _, lanes := range []int{1, 100, 10_000} {
		all = append(all, contest{name: fmt.Sprintf("no-op, %d destinations", lanes), contenders: []contender{
			{"River, pgx", riverWork(n)}, {"delivery, lib/pq", oursWork("postgres", n, lanes)}, {"delivery, pgx", oursWork("pgx", n, lanes)},
		}})
	}
	for _, backlog := range []int{1_000_000, 5_000_000} {
		all = append(all, contest{name: fmt.Sprintf("no-op, backlog of %d", backlog), long: true, contenders: []contender{
			{"100,000, lib/pq", oursBacklog(100_000)}, {"the backlog, lib/pq", oursBacklog(backlog)},
		}})
	}
	return append(all,
		contest{name: "signed webhooks", contenders: []contender{
			{"net/http alone, 256 at once", bareLoop(n / 2)}, {"1 destination, lib/pq", webhooks("postgres", n/2, 1)},
			{"100 destinations, lib/pq", webhooks("postgres", n/2, 100)},
		}},
		contest{name: "one of 101 never answers", contenders: []contender{
			{"100 that answer", oursBeside(n, false)}, {"and one that does not", oursBeside(n, true)},
		}},
		contest{name: "no-op, 100 destinations, limits", contenders: []contender{
			{"no limits, lib/pq", oursWork("postgres", n, 100)}, {"16 at once each", oursWork("postgres", n, 100, sixteen)},
			{"in strict order", oursWork("postgres", n/10, 100, ordered)},
		}},
		contest{name: "SQLite, no-op, 100 destinations", contenders: []contender{
			{"no limits", oursWork("sqlite", n, 100)}, {"16 at once each", oursWork("sqlite", n, 100, sixteen)},
			{"in strict order", oursWork("sqlite", n/10, 100, ordered)},
		}},
		contest{name: "SQLite, DeliverMany of 1,000", contenders: []contender{{"delivery, SQLite", oursInsertMany("sqlite", n)}}},
		contest{name: "SQLite, Deliver, 8 goroutines", contenders: []contender{{"delivery, SQLite", oursInsert("sqlite", n/5)}}},
		contest{name: "DeliverMany of 1,000", contenders: []contender{
			{"River InsertManyFast, pgx", riverInsertMany(n)}, {"delivery, lib/pq", oursInsertMany("postgres", n)}, {"delivery, pgx", oursInsertMany("pgx", n)},
		}},
		contest{name: "Deliver, 8 goroutines", contenders: []contender{
			{"River Insert, pgx", riverInsert(n / 5)}, {"delivery, lib/pq", oursInsert("postgres", n/5)}, {"delivery, pgx", oursInsert("pgx", n/5)},
		}})
}
