package dbtest

import (
	"context"
	"io"
	"time"

	"go.uber.org/goleak"
)

type (
	Verdict   = verdict
	Templates = templates
)

const (
	Proceed = proceed
	Skip    = skip
	Refuse  = refuse
)

var (
	Decide       = decide
	Require      = require
	SQLiteDSN    = sqliteDSN
	DatabaseURL  = databaseURL
	Stale        = stale
	DropStale    = dropStale
	UniqueName   = uniqueName
	ParseVersion = parseVersion
)

func (p *templates) Get(server, name string, prepare func(url string) error) (string, error) {
	return p.get(server, name, prepare)
}

func CreateDatabase(ctx context.Context, server, db, template string) error {
	return createDatabase(ctx, server, db, template)
}

func DropDatabase(ctx context.Context, server, db string) error {
	return dropDatabase(ctx, server, db)
}

func Run(m goleak.TestingM, p *Templates, stderr io.Writer, leaks func() error) int {
	return run(m, p, stderr, leaks)
}

func StartAt(ctx context.Context, o Options, choosePort func(context.Context) (int, error)) (*Server, error) {
	return start(ctx, o, choosePort)
}

func Search(ctx context.Context, path, places []string) (dir, version string, err error) {
	in, err := search(ctx, path, places)
	return in.dir, in.version, err
}

func Find(ctx context.Context, dir string) (string, error) {
	in, err := find(ctx, dir)
	return in.dir, err
}

func (s *Server) Dir() string { return s.dir }

func (s *Server) Postmaster() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	return s.process.cmd.Process.Pid
}

const StaleAge = staleAge

func Ago(d time.Duration) time.Time { return time.Now().Add(-d) }
