package dbtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	createTimeout  = time.Minute
	prepareTimeout = 5 * time.Minute

	prefix   = "delivery_test_"
	staleAge = 48 * time.Hour

	// inUse is the SQLSTATE of a CREATE DATABASE that has waited 5 s for other
	// sessions of its template to end.
	inUse = "55006"
)

// created is the only state of the package: templates live as long as the
// process, because all tests of a package share them.
var created = &templates{}

var sweep sync.Once

// Postgres creates an empty database on the server that [EnvURL] names and
// returns its URL, which lib/pq and pgx both accept. The database is dropped when
// the test ends, even if sessions are still connected. Without EnvURL the test
// fails, or is skipped if [EnvSkip] says so.
func Postgres(t testing.TB) string {
	t.Helper()
	return fromTemplate(t, "template0")
}

// PostgresFrom is [Postgres] with a database that starts as a copy of the one
// that prepare made. prepare runs once per process and name, on an empty database
// whose URL it receives. Only the first caller's prepare runs, so one name must
// stand for one content. Its error fails every test that asks for the name.
// Sessions that it leaves open are disconnected.
func PostgresFrom(t testing.TB, name string, prepare func(url string) error) string {
	t.Helper()
	require(t, false)
	template, err := created.get(os.Getenv(EnvURL), name, prepare)
	if err != nil {
		t.Fatal(err)
	}
	return fromTemplate(t, template)
}

func fromTemplate(t testing.TB, template string) string {
	t.Helper()
	require(t, false)
	server := os.Getenv(EnvURL)
	ctx, cancel := context.WithTimeout(t.Context(), createTimeout)
	defer cancel()
	sweep.Do(func() { dropStale(ctx, server, time.Now()) })

	db := uniqueName(time.Now(), "")
	u, err := databaseURL(server, db)
	if err != nil {
		t.Fatal(err)
	}
	if err := createDatabase(ctx, server, db, template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
		defer cancel()
		if err := dropDatabase(ctx, server, db); err != nil {
			t.Error(err)
		}
	})
	return u
}

// templates are the template databases of one process.
type templates struct {
	mu     sync.Mutex
	byName map[string]*template
}

type template struct {
	once   sync.Once
	server string
	db     string
	err    error
}

func (p *templates) get(server, name string, prepare func(url string) error) (string, error) {
	p.mu.Lock()
	tpl := p.byName[name]
	if tpl == nil {
		if p.byName == nil {
			p.byName = map[string]*template{}
		}
		tpl = &template{server: server}
		p.byName[name] = tpl
	}
	p.mu.Unlock()

	tpl.once.Do(func() {
		// This error remains if prepare ends its goroutine, as t.FailNow does.
		tpl.err = fmt.Errorf("dbtest: preparing template %q did not return", name)
		if err := tpl.make(prepare); err != nil {
			tpl.err = fmt.Errorf("dbtest: preparing template %q: %w", name, err)
			return
		}
		tpl.err = nil
	})
	return tpl.db, tpl.err
}

func (tpl *template) make(prepare func(url string) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), prepareTimeout)
	defer cancel()
	db := uniqueName(time.Now(), "template_")
	u, err := databaseURL(tpl.server, db)
	if err != nil {
		return err
	}
	if err := createDatabase(ctx, tpl.server, db, "template0"); err != nil {
		return err
	}
	tpl.db = db
	if err := prepare(u); err != nil {
		return err
	}
	// A template with a session cannot be copied: refuse new connections, then
	// end the existing ones.
	return administer(ctx, tpl.server, func(c *pgx.Conn) error {
		if _, err := c.Exec(ctx, "alter database "+quote(db)+" with allow_connections false"); err != nil {
			return fmt.Errorf("closing it to connections: %w", err)
		}
		if _, err := c.Exec(
			ctx, "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", db,
		); err != nil {
			return fmt.Errorf("disconnecting its sessions: %w", err)
		}
		return nil
	})
}

// drop removes the templates. If a name is requested later, it is prepared again.
func (p *templates) drop(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for name, tpl := range p.byName {
		if tpl.db != "" {
			errs = append(errs, dropDatabase(ctx, tpl.server, tpl.db))
		}
		delete(p.byName, name)
	}
	return errors.Join(errs...)
}

func createDatabase(ctx context.Context, server, db, template string) error {
	return administer(ctx, server, func(c *pgx.Conn) error {
		stmt := "create database " + quote(db) + " template " + quote(template)
		if template == "template0" {
			stmt += " encoding 'UTF8'"
		}
		strategy, err := copyStrategy(ctx, c)
		if err != nil {
			return err
		}
		stmt += strategy
		for range 3 {
			_, err = c.Exec(ctx, stmt)
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != inUse {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("dbtest: creating a database (may the user of %s create databases?): %w", EnvURL, err)
		}
		return nil
	})
}

// copyStrategy chooses how CREATE DATABASE copies a template. Measured on
// PostgreSQL 15, four sessions at once, 40 tables, create and drop of one
// database: without fsync 27 ms by copying files and 68 ms through the
// write-ahead log; with fsync 410 ms and 360 ms, because copying files forces
// checkpoints. Before version 15 there is no choice.
func copyStrategy(ctx context.Context, c *pgx.Conn) (string, error) {
	var version int
	var fsync bool
	err := c.QueryRow(ctx, "select current_setting('server_version_num')::int, current_setting('fsync')::bool").
		Scan(&version, &fsync)
	switch {
	case err != nil:
		return "", fmt.Errorf("dbtest: reading the server's settings: %w", err)
	case version < 130000:
		return "", fmt.Errorf("dbtest: %s names PostgreSQL %d: version 13 or newer is needed", EnvURL, version/10000)
	case version < 150000:
		return "", nil
	case fsync:
		return " strategy wal_log", nil
	default:
		return " strategy file_copy", nil
	}
}

func dropDatabase(ctx context.Context, server, db string) error {
	return administer(ctx, server, func(c *pgx.Conn) error {
		if _, err := c.Exec(ctx, "drop database if exists "+quote(db)+" with (force)"); err != nil {
			return fmt.Errorf("dbtest: dropping database %s, drop it by hand: %w", db, err)
		}
		return nil
	})
}

// dropStale removes databases that killed processes left behind. It is a courtesy
// to the server's owner: its failure fails no test.
func dropStale(ctx context.Context, server string, now time.Time) {
	_ = administer(ctx, server, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, "select datname from pg_database where starts_with(datname, $1)", prefix)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, name := range names {
			if stale(name, now) {
				if _, err := c.Exec(ctx, "drop database if exists "+quote(name)+" with (force)"); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func stale(name string, now time.Time) bool {
	rest, ours := strings.CutPrefix(name, prefix)
	if !ours {
		return false
	}
	stamp, _, _ := strings.Cut(strings.TrimPrefix(rest, "template_"), "_")
	seconds, err := strconv.ParseInt(stamp, 36, 64)
	return err == nil && now.Sub(time.Unix(seconds, 0)) > staleAge
}

// administer runs f on a connection of its own, so that nothing stays open
// between the calls for a leak detector to find.
func administer(ctx context.Context, server string, f func(c *pgx.Conn) error) error {
	u, err := adminURL(server)
	if err != nil {
		return err
	}
	c, err := pgx.Connect(ctx, u)
	if err != nil {
		return fmt.Errorf("dbtest: connecting to the server of %s (does it run?): %w", EnvURL, err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	return f(c)
}

func quote(identifier string) string {
	return pgx.Identifier{identifier}.Sanitize()
}

// uniqueName returns a name that is unique over all processes and machines that
// share a server. The name contains the time of its creation.
func uniqueName(now time.Time, kind string) string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return fmt.Sprintf(
		"%s%s%s_%d_%s", prefix, kind, strconv.FormatInt(now.Unix(), 36), os.Getpid(), hex.EncodeToString(b[:]),
	)
}

func adminURL(server string) (string, error) {
	u, err := parseServer(server)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

func databaseURL(server, db string) (string, error) {
	u, err := parseServer(server)
	if err != nil {
		return "", err
	}
	u.Path = "/" + db
	return u.String(), nil
}

// parseServer quotes no part of the URL in its errors, because it may contain a
// password.
func parseServer(server string) (*url.URL, error) {
	u, err := url.Parse(server)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return nil, fmt.Errorf(
			"dbtest: %s must be a URL, like postgres://user:password@host:5432/postgres?sslmode=disable",
			EnvURL,
		)
	}
	// Without sslmode pgx falls back to plain text and lib/pq refuses to.
	q := u.Query()
	if !q.Has("sslmode") && isLocal(u.Hostname()) {
		q.Set("sslmode", "disable")
		u.RawQuery = q.Encode()
	}
	return u, nil
}

func isLocal(host string) bool {
	if host == "" || host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
