package dbtest

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs a package's tests, drops the templates that [PostgresFrom] made,
// fails a run that leaked goroutines, and exits the process. It is the last
// call of a TestMain:
//
//	func TestMain(m *testing.M) { dbtest.Main(m) }
func Main(m *testing.M, options ...goleak.Option) {
	os.Exit(run(m, created, os.Stderr, func() error { return goleak.Find(options...) }))
}

func run(m goleak.TestingM, p *templates, stderr io.Writer, leaks func() error) int {
	code := m.Run()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	err := p.drop(ctx)
	cancel()
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		code = max(code, 1)
	}
	if code != 0 {
		return code // a failed test often leaks too, and the leak is not the news
	}
	if err := leaks(); err != nil {
		_, _ = fmt.Fprintf(stderr, "dbtest: the tests passed and leaked goroutines: %v\n", err)
		return 1
	}
	return 0
}
