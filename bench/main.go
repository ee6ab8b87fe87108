// Command bench measures the library beside River on one PostgreSQL with fsync on, and prints a
// table. Run it by make bench. Only the ratios of one run mean something: the rates depend on the
// machine and on what else it does.
//
//	bench [-n items] [-rounds n] [-case name] [-of contender] [-long] [-statements] [-cpuprofile file]
package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery/internal/dbtest"
)

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		if err := play(strings.Split(role, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	n := flag.Int("n", 100_000, "items of a case")
	rounds := flag.Int("rounds", 3, "times that each case is run; the median counts")
	only := flag.String("case", "", "the cases whose name contains this, alone")
	of := flag.String("of", "", "the contenders whose name contains this, alone")
	statements := flag.Bool("statements", false, "list what the database spent its time on (pg_stat_statements)")
	long := flag.Bool("long", false, "also the cases with backlogs of millions")
	profile := flag.String("cpuprofile", "", "a file for a profile of this process in what is timed last")
	flag.Parse()
	profileTo = *profile
	if err := run(context.Background(), *n, *rounds, *only, *of, *long, *statements); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var profileTo string

// profiled runs f, with a profile of the processor where one is asked for.
func profiled(f func() error) error {
	if profileTo == "" {
		return f()
	}
	w, err := os.Create(profileTo)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := pprof.StartCPUProfile(w); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return f()
}

// measure is what one contender did in one round.
type measure func(ctx context.Context, e *env) (result, error)

// result is how many of something there were a second, and the processor time that each took here
// and in the database, in microseconds.
type result struct {
	rate, own, server float64
	claims            []time.Duration // that each took, where that was noted
}

// timed runs f, which does n of something.
func (e *env) timed(n int, f func() error) (result, error) {
	own, server := cpuSeconds(e.postmaster)
	start := time.Now()
	err := profiled(f)
	elapsed := time.Since(start).Seconds()
	ownAfter, serverAfter := cpuSeconds(e.postmaster)
	per := 1e6 / float64(n)
	return result{rate: float64(n) / elapsed, own: (ownAfter - own) * per, server: (serverAfter - server) * per}, err
}

// contest is a case: contenders that do the same.
type contest struct {
	name       string
	contenders []contender
	long       bool
}

type contender struct {
	name string
	run  measure
}

func run(ctx context.Context, n, rounds int, only, of string, long, statements bool) error {
	settings := map[string]string{"shared_buffers": "1GB", "max_wal_size": "4GB"}
	if statements {
		settings["shared_preload_libraries"] = "pg_stat_statements"
		settings["pg_stat_statements.track_planning"] = "on"
	}
	server, err := dbtest.Start(ctx, dbtest.Options{Fsync: true, Settings: settings})
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop() }()
	fmt.Printf("%s, PostgreSQL %s with fsync, %s, %d cores; median of %d\n\n", time.Now().UTC().Format(time.DateOnly),
		server.Version(), runtime.Version(), runtime.NumCPU(), rounds)
	fmt.Printf("| %-28s | %-25s | %10s | %6s | %10s | %10s |\n|%s|%s|%s:|%s:|%s:|%s:|\n", "case", "", "per second", "ratio",
		"µs here", "µs in PG", strings.Repeat("-", 30), strings.Repeat("-", 27), strings.Repeat("-", 11), strings.Repeat("-", 7),
		strings.Repeat("-", 11), strings.Repeat("-", 11))
	var claimed []series
	for _, c := range contests(n) {
		if !strings.Contains(c.name, only) || c.long && !long {
			continue
		}
		c.contenders = slices.DeleteFunc(c.contenders, func(c contender) bool { return !strings.Contains(c.name, of) })
		results := make([][]result, len(c.contenders))
		for range rounds {
			for i, contender := range c.contenders {
				e, err := newEnv(ctx, server.URL())
				if err != nil {
					return err
				}
				if statements {
					err = e.track(ctx)
				}
				var r result
				if err == nil {
					r, err = contender.run(ctx, e)
				}
				if err == nil && statements {
					err = e.report(ctx)
				}
				if err := e.close(ctx); err != nil {
					return err
				}
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, contender.name, err)
				}
				results[i] = append(results[i], r)
			}
		}
		base := 0.0
		for i, contender := range c.contenders {
			slices.SortFunc(results[i], func(a, b result) int { return cmp.Compare(a.rate, b.rate) })
			median := results[i][len(results[i])/2]
			if i == 0 {
				base = median.rate
			}
			fmt.Printf("| %-28s | %-25s | %10.0f | %6.2f | %10.1f | %10.1f |\n", c.name, contender.name, median.rate,
				median.rate/base, median.own, median.server)
			if len(median.claims) > 0 {
				claimed = append(claimed, series{c.name + ": " + contender.name, median.claims})
			}
		}
	}
	if err := waitTable(ctx, server.URL(), n, only, of, long, claimed); err != nil {
		return err
	}
	const name = "memory over 10,000,000 items"
	if !long || !strings.Contains(name, only) || of != "" && !strings.Contains(ours, of) {
		return nil
	}
	e, err := newEnv(ctx, server.URL())
	if err != nil {
		return err
	}
	return errors.Join(memoryTable(ctx, e, 10_000_000), e.close(ctx))
}

// ours is the contender of the table of waits.
const ours = "delivery, lib/pq"

// series is how long each of something took.
type series struct {
	name string
	took []time.Duration
}

// waitTable prints how long items wait, and how long claims take.
func waitTable(ctx context.Context, server string, n int, only, of string, long bool, claimed []series) error {
	var all []series
	for _, c := range latencies(n) {
		if !strings.Contains(c.name, only) || of != "" && !strings.Contains(ours, of) || c.long && !long {
			continue
		}
		e, err := newEnv(ctx, server)
		if err != nil {
			return err
		}
		took, err := c.run(ctx, e)
		if err := errors.Join(err, e.close(ctx)); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		all = append(all, series{c.name, took})
		if len(e.claims.took) > 0 {
			claimed = append(claimed, series{c.name, e.claims.took})
		}
	}
	printSeries("ms from Deliver to the handler", all)
	printSeries("ms for a claim", claimed)
	return nil
}

// env is a fresh database on the server.
type env struct {
	admin      *sql.DB
	name       string
	url        string
	postmaster int
	files      string // a folder for databases of SQLite
	claims     claims // of the driver timed
}

// timed is lib/pq, with a note of how long claims take.
const timed = "timed"

func newEnv(ctx context.Context, server string) (*env, error) {
	admin, err := sql.Open("postgres", server)
	if err != nil {
		return nil, err
	}
	e := &env{admin: admin, name: fmt.Sprintf("bench_%d", time.Now().UnixNano())}
	if _, err := admin.ExecContext(ctx, "create database "+e.name); err != nil {
		return nil, err
	}
	e.url = strings.Replace(server, "/postgres?", "/"+e.name+"?", 1)
	var backend int
	if err := admin.QueryRowContext(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
		return nil, err
	}
	e.postmaster = parent(backend)
	e.files, err = os.MkdirTemp("", "bench")
	return e, err
}

func (e *env) open(driver string) (*sql.DB, error) {
	url := e.url
	if driver == timed {
		return e.claims.open(url)
	}
	if driver == "sqlite" {
		url = "file:" + filepath.ToSlash(filepath.Join(e.files, "bench.db")) + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)"
	}
	db, err := sql.Open(driver, url)
	if err != nil {
		return nil, err
	}
	return pooled(db), nil
}

func pooled(db *sql.DB) *sql.DB {
	db.SetMaxIdleConns(20)
	db.SetMaxOpenConns(20)
	return db
}

func (e *env) close(ctx context.Context) error {
	if err := os.RemoveAll(e.files); err != nil {
		return err
	}
	if _, err := e.admin.ExecContext(ctx, "drop database "+e.name+" with (force)"); err != nil {
		return err
	}
	if _, err := e.admin.ExecContext(ctx, "checkpoint"); err != nil {
		return err
	}
	return e.admin.Close()
}

// track starts to count statements.
func (e *env) track(ctx context.Context) error {
	_, err := e.admin.ExecContext(ctx, "create extension if not exists pg_stat_statements")
	if err == nil {
		_, err = e.admin.ExecContext(ctx, "select pg_stat_statements_reset()")
	}
	return err
}

// report lists the statements that took longest.
func (e *env) report(ctx context.Context) error {
	rows, err := e.admin.QueryContext(ctx, `select total_exec_time, total_plan_time, calls, rows, wal_bytes::bigint,
		left(regexp_replace(query, '\s+', ' ', 'g'), 90)
		from pg_stat_statements order by total_exec_time + total_plan_time desc limit 14`)
	if err != nil {
		return err
	}
	defer rows.Close()
	fmt.Printf("%10s %10s %8s %9s %12s\n", "ms", "planning", "calls", "rows", "WAL")
	for rows.Next() {
		var exec, plan float64
		var calls, n, wal int64
		var query string
		if err := rows.Scan(&exec, &plan, &calls, &n, &wal, &query); err != nil {
			return err
		}
		fmt.Printf("%10.0f %10.0f %8d %9d %12d %s\n", exec, plan, calls, n, wal, query)
	}
	return rows.Err()
}

var quiet = slog.New(slog.DiscardHandler)
