package postgres_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore/postgres"
	"github.com/deliverykit/delivery/internal/queuestore/queuetest"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// fillDead makes 50,000 dead letters of 50 destinations, with their deliveries and history.
var fillDead = []string{
	`insert into delivery_dead_letters
		(organization_id, delivery_id, n, destination_id, fence, lane, reason, died_at)
		select 'acme', ('00000000-0000-7000-8000-' || lpad(i::text, 12, '0'))::uuid, 1,
			('00000000-0000-7000-9000-' || lpad((i % 50)::text, 12, '0'))::uuid, 0, 1, 4 + i % 2, now()
		from generate_series(1, 50000) i`,
	`insert into delivery_deliveries (organization_id, id, created_at, payload_size, payload_type)
		select organization_id, delivery_id, now(), 1, 'x' from delivery_dead_letters`,
	`insert into delivery_attempts
		(organization_id, delivery_id, n, destination_id, fence, attempt, state, reason, ended_at)
		select organization_id, delivery_id, n, destination_id, fence, 1, 4, reason, now() from delivery_dead_letters`,
	`insert into delivery_destinations (organization_id, id, created_at, updated_at, type, label, config)
		select 'acme', ('00000000-0000-7000-9000-' || lpad(i::text, 12, '0'))::uuid, now(), now(), 'x', 'x', '{}'
		from generate_series(0, 49) i`,
}

// Lists, retries and purges of dead letters stay on their indexes and need no sort for their order,
// whatever the statistics are.
func TestDeadLetterPlansStayOnTheirIndexes(t *testing.T) {
	t.Parallel()
	type statement struct {
		query string
		args  []any
		index string
	}
	statements := map[string]statement{}
	add := func(name, index string, query string, args []any) {
		statements[name] = statement{query, args, index}
	}
	for _, s := range queuetest.AllDeadLetters(postgres.Native{}) {
		index := "delivery_dead_letters_pkey"
		switch {
		case s.Purge:
			index = "" // either is good
		case s.ByDestination:
			index = "delivery_dead_letters_destination"
		}
		add(s.Name, index, shape(t, deadShapes, s.Name), s.Args)
	}
	ids := "{" + queuetest.Delivery + "," + queuetest.Destination + "}"
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	add("revive", "delivery_dead_letters_pkey", postgres.Revive(),
		[]any{"{acme,acme}", ids, "{1,1}", "{0,0}", "{1,1}", "{NULL,NULL}", at})
	query, args := sqlstore.AttemptsQuery("acme", []string{queuetest.Delivery, queuetest.Destination})
	add("attempts", "delivery_attempts_pkey", query, args)
	query, args = sqlstore.SummariesQuery("acme", []string{queuetest.Delivery, queuetest.Destination})
	add("summaries", "delivery_deliveries_pkey", query, args)

	for name, steps := range map[string][]string{
		"never taken":             fillDead,
		"taken when it was empty": append([]string{`analyze`}, fillDead...),
		"full":                    append(fillDead[:len(fillDead):len(fillDead)], `analyze`),
		"of letters that are gone": append(fillDead[:len(fillDead):len(fillDead)], `analyze`,
			`delete from delivery_dead_letters where delivery_id > '00000000-0000-7000-8000-000000000100'`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			for _, table := range []string{"dead_letters", "queue", "attempts", "deliveries", "destinations", "payloads"} {
				steps = append([]string{`alter table delivery_` + table + ` set (autovacuum_enabled = false)`}, steps...)
			}
			for _, step := range steps {
				if _, err := db.ExecContext(t.Context(), step); err != nil {
					t.Fatal(err)
				}
			}
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				for name, s := range statements {
					plan := explain(t, db, mode, postgres.Statement{Query: s.query, Args: literals(s.args)})
					checkDead(t, name+", "+mode, plan, s.index)
				}
			}
		})
	}
}

func literals(args []any) []string {
	all := make([]string, len(args))
	for i, a := range args {
		if at, ok := a.(time.Time); ok {
			a = at.Format(time.RFC3339)
		}
		all[i] = fmt.Sprintf("'%v'", a)
	}
	return all
}

// checkDead wants no sequential scan, no sort and no join of whole tables. If an index is named,
// the dead letters have to be read by it.
func checkDead(t *testing.T, name, plan, index string) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(plan), &v); err != nil {
		t.Fatal(err)
	}
	used := ""
	visit(v, func(node map[string]any) {
		relation := fmt.Sprint(node["Relation Name"])
		switch kind := fmt.Sprint(node["Node Type"]); {
		case kind == "Seq Scan" && strings.HasPrefix(relation, "delivery_"), strings.HasSuffix(kind, "Sort"),
			strings.HasPrefix(kind, "Hash"), strings.HasPrefix(kind, "Merge"):
			t.Errorf("%s has a %s: %s", name, kind, plan)
		case node["Index Name"] != nil && node["Index Cond"] == nil,
			node["Filter"] != nil && relation != "delivery_dead_letters":
			t.Errorf("%s reads too much of %s: %s", name, relation, plan)
		case node["Index Name"] != nil && (used == "" || relation == "delivery_dead_letters"):
			used = fmt.Sprint(node["Index Name"])
		}
	})
	if used == "" || index != "" && used != index {
		t.Errorf("%s goes by %q, not %q: %s", name, used, index, plan)
	}
}
