package dbtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// bouncerPlaces are where packages put PgBouncer outside of PATH.
var bouncerPlaces = []string{"/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"}

// bouncerScript ends PgBouncer when its own input ends: when the test closes it
// or the test process is gone.
const bouncerScript = `
trap '' HUP INT TERM
"$1" -q "$2" &
read -r _
kill -KILL $!
wait
`

// bouncerServers is low, so that clients soon get connections that others have
// used.
const bouncerServers = 4

// Bouncer starts a PgBouncer in transaction mode in front of the database at
// databaseURL, and returns the URL of the database through it. PgBouncer runs
// until the test ends. Clients share 4 connections to the server.
func Bouncer(t testing.TB, databaseURL string) string {
	t.Helper()
	program, err := findBouncer()
	if err != nil {
		t.Fatal(err)
	}
	var through string
	for range 5 { // another process may take the port that was free
		through, err = startBouncer(t, program, databaseURL)
		if err == nil {
			return through
		}
	}
	t.Fatal(err)
	return ""
}

func findBouncer() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	for _, path := range bouncerPlaces {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New(
		"dbtest: no pgbouncer in PATH or the usual places: run scripts/setup, or install the package pgbouncer",
	)
}

func startBouncer(t testing.TB, program, databaseURL string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), createTimeout)
	defer cancel()
	u, err := url.Parse(databaseURL)
	if err != nil {
		return "", err
	}
	port, err := freePort(ctx)
	if err != nil {
		return "", err
	}
	acc, err := newAccount()
	if err != nil {
		return "", err
	}
	dir, err := acc.tempDir()
	if err != nil {
		return "", err
	}
	login := "user=" + iniQuote(u.User.Username())
	if password, ok := u.User.Password(); ok {
		login += " password=" + iniQuote(password)
	}
	config := fmt.Sprintf(`[databases]
* = host=%s port=%s %s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 500
default_pool_size = %d
ignore_startup_parameters = extra_float_digits
logfile = %s
`, u.Hostname(), u.Port(), login, port, bouncerServers, filepath.Join(dir, "log"))
	file := filepath.Join(dir, "pgbouncer.ini")
	err = os.WriteFile(file, []byte(config), 0o644) //nolint:gosec // another user reads it, until the test ends
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	cmd := acc.prepare(
		exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", bouncerScript, "sh", program, file),
		"/",
	)
	cmd.Stdin = r
	err = cmd.Start()
	_ = r.Close()
	stop := func() {
		_ = w.Close()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	if err != nil {
		return "", errors.Join(err, w.Close(), os.RemoveAll(dir))
	}
	u.Host = "127.0.0.1:" + strconv.Itoa(port)
	u.User = url.User(u.User.Username())
	if err := awaitBouncer(ctx, u.String()); err != nil {
		log, _ := os.Open(filepath.Join(dir, "log"))
		tail, _ := io.ReadAll(io.LimitReader(log, 4000))
		stop()
		return "", fmt.Errorf("dbtest: starting %s: %w; its log:\n%s", program, err, strings.TrimSpace(string(tail)))
	}
	t.Cleanup(stop)
	return u.String(), nil
}

func iniQuote(v string) string { return "'" + strings.ReplaceAll(v, "'", "''") + "'" }

func awaitBouncer(ctx context.Context, through string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		c, err := pgx.Connect(ctx, through)
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
