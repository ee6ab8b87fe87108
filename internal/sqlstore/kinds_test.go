package sqlstore_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// kind says how a table grows, and with that what a statement on it costs when a service has run
// for a year.
type kind string

const (
	// hot tables have a row for what is under way, and are written with each step of an item. They
	// stay small enough for memory, and no statement on them may wait for a disk.
	hot kind = "hot"
	// cold tables have a row for what has been, and grow until a retention removes it. They may be
	// partitioned or lie on slow disks one day.
	cold kind = "cold"
	// small tables have a row for what somebody has set up.
	small kind = "small"
)

// kinds are the tables without their prefix.
var kinds = map[string]kind{
	"queue":    hot,
	"leases":   hot,
	"gates":    hot,
	"health":   hot, // written with attempts, if only with those that fail
	"sequence": hot, // of SQLite; all writers begin with it

	"deliveries":      cold,
	"attempts":        cold,
	"payloads":        cold,
	"payload_chunks":  cold,
	"idempotency":     cold, // a row for each request with a key, for as long as the key is kept
	"dead_letters":    cold, // nothing bounds how many letters wait for somebody to look at them
	"written":         cold, // a row for each item whose content is to be removed some day
	"checkpoints":     cold, // only long attempts write it, and it goes with its delivery
	"minutes":         cold, // grows with time, and is not written with an item but in batches
	"security_events": cold, // append-only

	"destinations":  small,
	"organizations": small, // locked by claims where an organization has limits, but written by calls alone
	"checks":        small, // a row for each destination that is tested
	"usage":         small, // a row for each destination
	"jobs":          small,
	"workers":       small,
	"installation":  small,
}

// mixed lists the functions and files whose statements touch hot and cold tables at once, each with
// the reason.
var mixed = map[string]string{
	"queuestore/postgres/queries/claim.sql":               "an attempt needs the content: one round trip instead of two",
	"queuestore/sqlite/queries/claim.sql":                 "an attempt needs the content: one query instead of two for each lane",
	"queuestore/postgres/queries/end.sql":                 ends,
	"queuestore/postgres/queries/end_placed.sql":          ends,
	"queuestore/postgres/queries/end_detailed.sql":        ends,
	"queuestore/postgres/queries/end_detailed_placed.sql": ends,
	"queuestore/sqlite/queries/bury.sql":                  "the letter keeps the lane and the deadline of the item",
	"queuestore/postgres/queries/revive.sql":              "the letter becomes an item: one round trip for a batch",
	"queuestore/postgres/testdata/enqueue.sql":            "all of a request or nothing, in one round trip",
	"maintenance.retain":                                  "a delivery with items in the queue is kept",
	"queuestore.ItemsOf":                                  "an item is in the queue or in the history",
	"sqlstore.Tx.DestinationsOf":                          "an item is in the queue or in the history",
	"queuestore.SaveCheckpoint":                           "the fence of the item decides whether the checkpoint is kept",
}

const ends = "an item leaves the queue and enters the history at once: one round trip for a batch"

// table matches the name of a table of ours.
var table = regexp.MustCompile(`\bdelivery_(` + strings.Join(slices.Sorted(maps.Keys(kinds)), "|") + `)\b`)

// Each table has a kind.
func TestTablesHaveAKind(t *testing.T) {
	t.Parallel()
	created := regexp.MustCompile(`(?m)^create table delivery_([a-z_]+)`)
	found := map[string]bool{}
	files, err := filepath.Glob(filepath.Join("*", "migrations", "*.sql"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range created.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
			if kinds[m[1]] == "" {
				t.Errorf("%s creates delivery_%s, which has no kind", file, m[1])
			}
		}
	}
	for name := range kinds {
		if !found[name] {
			t.Errorf("delivery_%s has a kind, and no migration creates it", name)
		}
	}
}

// A statement touches either hot or cold tables, unless it is listed with a reason.
func TestHotAndColdTablesAreNotMixed(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, s := range append(inSource(t), inQueries(t)...) {
		touched := map[kind][]string{}
		for _, m := range table.FindAllStringSubmatch(s.text, -1) {
			touched[kinds[m[1]]] = append(touched[kinds[m[1]]], m[1])
		}
		if touched[hot] == nil || touched[cold] == nil {
			continue
		}
		used[s.unit] = true
		if mixed[s.unit] == "" {
			t.Errorf("%s mixes %s with %s: %s", s.unit, touched[hot], touched[cold], s.text)
		}
	}
	for unit := range mixed {
		if !used[unit] {
			t.Errorf("%s is listed as a statement that mixes hot and cold tables, and does not", unit)
		}
	}
}
