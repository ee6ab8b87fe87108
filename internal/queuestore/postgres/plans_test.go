package postgres_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	_ "github.com/lib/pq"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/queuestore/postgres"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// fill makes a backlog of 100,000 items in 100 lanes, half of them not ready.
const fill = `insert into delivery_queue (organization_id, delivery_id, n, lane, run_at, state, deadline)
	select 'acme', ('00000000-0000-7000-8000-' || lpad(i::text, 12, '0'))::uuid, 1, (5::bigint << 32) | (i % 100), now(),
		(i % 4) % 3, case when i % 1000 = 0 then now() end
	from generate_series(1, 100000) i`

// fillFew makes three items.
const fillFew = `insert into delivery_queue (organization_id, delivery_id, n, lane, run_at)
	select 'acme', gen_random_uuid(), 1, 1, now() from generate_series(1, 3)`

// The statements of the queue stay on their indexes whatever the statistics say, with custom and
// with generic plans.
func TestPlansStayOnTheirIndexes(t *testing.T) {
	t.Parallel()
	statements := postgres.Statements()
	leased := queuestore.Leased + ` for update skip locked`
	statements["leased"] = postgres.Statement{
		Query: leased, Args: []string{"1", "1", "1000", "7", "1000"}, Index: "delivery_queue_ready",
	}
	for _, s := range postgres.Enqueues() {
		s.Query = shape(t, enqueueShapes, s.Name)
		statements["enqueue, "+s.Name] = s.Statement
	}
	statistics := map[string][]string{
		"never taken":                         {fill},
		"taken when it was empty":             {`analyze`, fill},
		"full":                                {fill, `analyze`},
		"of a backlog that is gone":           {fill, `analyze`, `delete from delivery_queue where n = 1 and seq > 100`},
		"of a few rows before there are many": {fillFew, `analyze`, fill},
	}
	for name, steps := range statistics {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			for _, table := range []string{"queue", "attempts", "deliveries", "destinations"} {
				steps = append([]string{`alter table delivery_` + table + ` set (autovacuum_enabled = false)`}, steps...)
			}
			for _, step := range steps {
				if _, err := db.ExecContext(t.Context(), step); err != nil {
					t.Fatal(err)
				}
			}
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				for name, s := range statements {
					check(t, name+", "+mode, explain(t, db, mode, s), s)
				}
			}
		})
	}
}

func open(t *testing.T) *sql.DB {
	t.Helper()
	url := dbtest.PostgresFrom(t, "migrated", func(url string) error {
		db, err := sql.Open("postgres", url)
		if err != nil {
			return err
		}
		defer db.Close()
		svc, err := delivery.New(db)
		if err != nil {
			return err
		}
		return svc.Migrate(context.Background())
	})
	db, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func explain(t *testing.T, db *sql.DB, mode string, s postgres.Statement) string {
	t.Helper()
	tx, _, err := postgres.Native{}.Begin(t.Context(), db, sqlstore.Writing)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	arguments := ""
	if len(s.Args) > 0 {
		arguments = "(" + strings.Join(s.Args, ", ") + ")"
	}
	prepare := `set local plan_cache_mode = ` + mode + `; prepare statement as ` + s.Query
	if _, err := tx.ExecContext(t.Context(), prepare); err != nil {
		t.Fatal(err)
	}
	var plan string
	scan := func(rows *sql.Rows) error { return rows.Scan(&plan) }
	if err := sqlstore.Scan(t.Context(), tx, scan, `explain (format json) execute statement`+arguments); err != nil {
		t.Fatalf("%v in %s", err, s.Query)
	}
	if _, err := tx.ExecContext(t.Context(), `deallocate statement`); err != nil {
		t.Fatal(err)
	}
	return plan
}

func check(t *testing.T, name, plan string, s postgres.Statement) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(plan), &v); err != nil {
		t.Fatal(err)
	}
	used := false
	visit(v, func(node map[string]any) {
		relation := fmt.Sprint(node["Relation Name"])
		switch kind := fmt.Sprint(node["Node Type"]); {
		case kind == "Seq Scan" && strings.HasPrefix(relation, "delivery_"):
			t.Errorf("%s reads all of %s: %s", name, relation, plan)
		case strings.HasSuffix(kind, "Sort") && s.Index != "":
			t.Errorf("%s sorts: %s", name, plan)
		case s.Index == postgres.Placed && kind == "Tid Scan":
			used = true
		case s.Index != "" && node["Index Name"] != nil && (relation == "delivery_queue" || relation == "<nil>"):
			if node["Index Name"] != s.Index {
				t.Errorf("%s goes by %s, not %s: %s", name, node["Index Name"], s.Index, plan)
			}
			used = true
		}
	})
	if s.Index != "" && !used {
		t.Errorf("%s uses no index: %s", name, plan)
	}
}

func visit(v any, node func(map[string]any)) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			visit(e, node)
		}
	case map[string]any:
		if v["Node Type"] != nil {
			node(v)
		}
		for _, e := range v {
			visit(e, node)
		}
	}
}
