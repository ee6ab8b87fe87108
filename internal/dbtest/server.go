package dbtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	pollInterval = 20 * time.Millisecond
	quitTimeout  = 15 * time.Second
	bindAttempts = 5
)

// Options say how [Start] sets up a server. The zero value suits tests.
type Options struct {
	// Fsync makes commits survive a crash of the operating system, as in
	// production. Set it for benchmarks. Without it commits still survive
	// [Server.Crash], and everything is faster. Default: off.
	Fsync bool
	// Settings are added to the server's configuration. They override those
	// that Start makes, except for the port and the addresses.
	Settings map[string]string
	// Locale is the locale for initdb. Default: C, which every system has.
	Locale string
	// Binaries is the directory of initdb and postgres. Default: the one in
	// [EnvBinaries], or the first in PATH, or the newest installed.
	Binaries string
}

// Server is a PostgreSQL server of its own: a new cluster in a temporary
// directory, on the loopback interface and a free port. Its superuser postgres
// needs no password, so anyone who can log in on the machine can connect while
// it runs. It ends with the process that started it, however that process ends:
// a watcher process ends it.
//
// It is safe for concurrent use.
type Server struct {
	install installation
	options Options
	account account
	dir     string
	guard   *guard

	mu      sync.Mutex
	port    int
	process *process // nil while crashed or stopped
	stopped bool
}

// Start sets up a server and returns once it accepts connections. ctx limits only
// the start; the server runs until [Server.Stop]. If the caller is root, the
// server runs as the user postgres, or as nobody if there is none, because
// PostgreSQL refuses root. Start needs a Unix.
func Start(ctx context.Context, o Options) (*Server, error) {
	return start(ctx, o, freePort)
}

func start(ctx context.Context, o Options, choosePort func(context.Context) (int, error)) (*Server, error) {
	acct, err := newAccount()
	if err != nil {
		return nil, fmt.Errorf("dbtest: %w", err)
	}
	dir := o.Binaries
	if dir == "" {
		dir = os.Getenv(EnvBinaries)
	}
	install, err := find(ctx, dir)
	if err != nil {
		return nil, err
	}
	s := &Server{install: install, options: o, account: acct}
	if s.dir, err = acct.tempDir(); err != nil {
		return nil, fmt.Errorf("dbtest: %w", err)
	}
	if s.guard, err = s.watch(); err != nil {
		return nil, errors.Join(fmt.Errorf("dbtest: starting the watcher: %w", err), os.RemoveAll(s.dir))
	}
	if err := s.setUp(ctx, choosePort); err != nil {
		return nil, errors.Join(
			fmt.Errorf("dbtest: PostgreSQL %s from %s: %w", install.version, install.dir, err),
			s.Stop(),
		)
	}
	return s, nil
}

// Cluster is [Start] for a test, with [Server.Stop] at its end. If the server
// cannot be started, the test fails. [EnvSkip] skips the test, as for [Postgres].
func Cluster(t testing.TB, o Options) *Server {
	t.Helper()
	require(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), createTimeout)
	defer cancel()
	s, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of PostgreSQL's log:\n%s", s.LogTail())
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// URL returns the URL of the database postgres, for the superuser. lib/pq, pgx
// and [EnvURL] all accept it.
func (s *Server) URL() string {
	return "postgres://postgres@" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port())) + "/postgres?sslmode=disable"
}

// Port returns the TCP port on 127.0.0.1. [Server.Restart] keeps it.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.port
}

// Version returns the version of the server, such as 15.18.
func (s *Server) Version() string { return s.install.version }

// Binaries returns the directory of the server's programs. Client programs such
// as pgbench may be missing there.
func (s *Server) Binaries() string { return s.install.dir }

// LogTail returns the last 4 KiB of the server's log, "" after [Server.Stop].
func (s *Server) LogTail() string {
	f, err := os.Open(s.logFile())
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const maxTail = 4 << 10
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-maxTail), io.SeekStart)
	}
	b, _ := io.ReadAll(f)
	return strings.TrimSpace(string(b))
}

// Crash ends the server at once, without a checkpoint and without waiting for its
// sessions. [Server.Restart] recovers committed transactions; all others are
// lost. Crash returns when no process of the server is left. It leaves a server
// alone that does not run.
func (s *Server) Crash() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quit()
}

// Restart starts a crashed server again, with the same data and port, and returns
// once it accepts connections. It fails while the server runs, and after
// [Server.Stop].
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return errors.New("dbtest: restarting a server that was stopped: start a new one")
	case s.process != nil:
		return errors.New("dbtest: restarting a server that runs: crash it first")
	}
	if err := s.launch(ctx, s.port); err != nil {
		return fmt.Errorf("dbtest: restarting: %w", err)
	}
	return nil
}

// Stop ends the server and removes its data. Further calls do nothing.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	s.stopped = true
	return errors.Join(s.quit(), os.RemoveAll(s.dir), s.guard.release())
}

func (s *Server) dataDir() string { return filepath.Join(s.dir, "data") }

func (s *Server) logFile() string { return filepath.Join(s.dir, "postgres.log") }

func (s *Server) setUp(ctx context.Context, choosePort func(context.Context) (int, error)) error {
	if err := s.initdb(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range bindAttempts {
		var port int
		if port, err = choosePort(ctx); err != nil {
			return err
		}
		if err = s.launch(ctx, port); err == nil {
			s.port = port
			return nil
		}
		// Between choosing the port and binding it, another may have taken it.
		if !errors.Is(err, errExited) || !strings.Contains(s.LogTail(), "could not bind") {
			return err
		}
	}
	return err
}

func (s *Server) initdb(ctx context.Context) error {
	locale := s.options.Locale
	if locale == "" {
		locale = "C"
	}
	cmd := s.command(ctx, "initdb", "--pgdata="+s.dataDir(), "--username=postgres", "--auth=trust",
		"--encoding=UTF8", "--locale="+locale, "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb%s: %w\n%s", s.account.hint(), err, strings.TrimSpace(string(out)))
	}
	return nil
}

var errExited = errors.New("the server ended while it started")

// launch starts the server on port and waits until it accepts connections.
func (s *Server) launch(ctx context.Context, port int) error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := s.command(context.WithoutCancel(ctx), "postgres", s.arguments(port)...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := startProcess(cmd)
	if err != nil {
		return fmt.Errorf("starting the server%s: %w", s.account.hint(), err)
	}
	s.process = p
	if err := s.awaitReady(ctx, port); err != nil {
		err = fmt.Errorf("%w; the end of its log:\n%s", err, s.LogTail())
		return errors.Join(err, s.quit())
	}
	return nil
}

func (s *Server) arguments(port int) []string {
	settings := map[string]string{
		"max_connections": "300", "shared_buffers": "128MB", "max_wal_size": "2GB",
		"fsync": onOff(s.options.Fsync), "full_page_writes": onOff(s.options.Fsync),
	}
	maps.Copy(settings, s.options.Settings)
	settings["port"] = strconv.Itoa(port)
	settings["listen_addresses"] = "127.0.0.1"
	settings["unix_socket_directories"] = "" // a socket's path has a length limit, and nothing needs it

	args := []string{"-D", s.dataDir()}
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", k+"="+settings[k])
	}
	return args
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func (s *Server) awaitReady(ctx context.Context, port int) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := s.probe(ctx, port)
		if err == nil {
			return nil
		}
		select {
		case <-s.process.done:
			return errExited
		case <-ctx.Done():
			return fmt.Errorf("waiting for the server: %w (last: %w)", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// probe connects, and checks that this server answers and not another one.
func (s *Server) probe(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	var dir string
	if err := c.QueryRow(ctx, "show data_directory").Scan(&dir); err != nil {
		return err
	}
	if filepath.Base(filepath.Dir(dir)) != filepath.Base(s.dir) {
		return fmt.Errorf("another server answers on port %d", port)
	}
	return nil
}

// quit asks the postmaster for its immediate shutdown, which ends all of its
// processes. If the postmaster were killed, sessions would go on and commit.
func (s *Server) quit() error {
	p := s.process
	if p == nil {
		return nil
	}
	s.process = nil
	if err := p.quit(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("dbtest: ending PostgreSQL: %w", err)
	}
	timeout := time.NewTimer(quitTimeout)
	defer timeout.Stop()
	select {
	case <-p.done:
		return nil
	case <-timeout.C:
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("dbtest: PostgreSQL did not end in %s and was killed", quitTimeout)
	}
}

// command returns a command that runs a program of the installation as the
// server's account. It is detached from the terminal, whose interrupts the caller
// handles.
func (s *Server) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return s.account.prepare(exec.CommandContext(ctx, filepath.Join(s.install.dir, program), args...), s.dir)
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait()
	}()
	return p, nil
}

// watchScript waits for the end of its input, then ends the server and removes
// its directory. The input ends when the process at the other end of the pipe is
// gone. The lock file names the current postmaster, so the script can end no
// other process; without the file there is no postmaster.
const watchScript = `
trap '' HUP INT TERM
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
	kill -QUIT "$pid" 2>/dev/null
	n=0
	while kill -0 "$pid" 2>/dev/null && [ "$n" -lt 100 ]; do
		sleep 0.1
		n=$((n + 1))
	done
fi
rm -rf -- "$1"
`

// guard is the watcher, and the pipe by which it notices the end of this process.
type guard struct {
	cmd  *exec.Cmd
	pipe *os.File
}

func (s *Server) watch() (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	cmd := s.account.prepare(exec.CommandContext(context.Background(), "/bin/sh", "-c", watchScript, "sh", s.dir), "/")
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		return nil, err
	}
	return &guard{cmd: cmd, pipe: w}, nil
}

// release ends the watcher, which then finds nothing left to do.
func (g *guard) release() error {
	return errors.Join(g.pipe.Close(), g.cmd.Wait())
}

func freePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("looking for a free port: the address is a %T", l.Addr())
	}
	return addr.Port, nil
}
