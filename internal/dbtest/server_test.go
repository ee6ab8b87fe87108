//go:build unix

package dbtest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/deliverykit/delivery/internal/dbtest"
)

func TestServerCrashAndRestart(t *testing.T) {
	t.Parallel()
	s := dbtest.Cluster(t, dbtest.Options{Settings: map[string]string{"work_mem": "5MB", "port": "1"}})
	port := s.Port()
	ctx := t.Context()
	c, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		t.Fatal(err)
	}
	for _, stmt := range []string{
		"create table t (x integer)",
		"insert into t values (1)",
		"begin",
		"insert into t values (2)",
	} {
		if _, err := c.Exec(ctx, stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	if err := s.Restart(ctx); err == nil {
		t.Error("a running server was restarted")
	}
	if err := s.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(ctx); err == nil {
		t.Error("a session outlived the crash")
	}
	_ = c.Close(ctx)
	if err := s.Crash(); err != nil {
		t.Errorf("a second crash: %v", err)
	}
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if s.Port() != port {
		t.Errorf("the port moved from %d to %d", port, s.Port())
	}
	db := open(t, "postgres", s.URL())
	if got := queryString(t, db, "select string_agg(x::text, ',') from t"); got != "1" {
		t.Errorf("after the crash t holds %s, want what was committed: 1", got)
	}
	for setting, want := range map[string]string{"work_mem": "5MB", "fsync": "off", "max_connections": "300"} {
		if got := queryString(t, db, "show "+setting); got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	if got := queryString(t, db, "show server_version"); !strings.HasPrefix(got, s.Version()) {
		t.Errorf("the server is %s, Version says %s", got, s.Version())
	}
}

func TestServerStop(t *testing.T) {
	t.Parallel()
	s := dbtest.Cluster(t, dbtest.Options{Fsync: true})
	if got := queryString(t, open(t, "pgx", s.URL()), "show fsync"); got != "on" {
		t.Errorf("fsync is %s, want on", got)
	}
	pid := s.Postmaster()
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if alive(pid) {
		t.Error("the server runs after Stop")
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data is there after Stop: %v", err)
	}
	if err := s.Restart(t.Context()); err == nil {
		t.Error("a stopped server was restarted")
	}
	if s.LogTail() != "" {
		t.Error("a stopped server has a log")
	}
}

func TestStartTakesAnotherPortWhereOneIsTaken(t *testing.T) {
	t.Parallel()
	dbtest.Require(t, true)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	addr, _ := l.Addr().(*net.TCPAddr)
	asked := 0
	s, err := dbtest.StartAt(t.Context(), dbtest.Options{}, func(ctx context.Context) (int, error) {
		if asked++; asked == 1 {
			return addr.Port, nil
		}
		other, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		free, _ := other.Addr().(*net.TCPAddr)
		return free.Port, other.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Port() == addr.Port || asked < 2 {
		t.Errorf("runs on port %d after asking %d times; that port was taken", s.Port(), asked)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

func TestStartTellsWhyItFailed(t *testing.T) {
	t.Parallel()
	dbtest.Require(t, true)
	_, err := dbtest.Start(t.Context(), dbtest.Options{Settings: map[string]string{"work_mem": "much"}})
	if err == nil || !strings.Contains(err.Error(), "work_mem") {
		t.Errorf("got %v, want an error with the server's own words about work_mem", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dbtest.Start(ctx, dbtest.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that the context was canceled", err)
	}
}

func TestServerEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	dbtest.Require(t, true)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), orphanEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("read %q: %v", line, err)
	}
	var dir, addr string
	if _, err := fmt.Sscan(line, &dir, &addr); err != nil {
		t.Fatalf("the other process said %q", line)
	}
	if !accepts(t, addr) {
		t.Errorf("no server runs on %s", addr)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the server's data is removed after its process was killed", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
	eventually(t, "the server ends after its process was killed", func() bool { return !accepts(t, addr) })
}

func alive(pid int) bool {
	return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

func accepts(t *testing.T, addr string) bool {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
