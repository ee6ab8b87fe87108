package dbtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/internal/dbtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		os.Exit(orphanServer())
	}
	dbtest.Main(m)
}

const orphanEnv = "DELIVERY_DBTEST_ORPHAN"

// orphanServer is another process's main: it starts a server, tells where, and
// waits to be killed.
func orphanServer() int {
	s, err := dbtest.Start(context.Background(), dbtest.Options{})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Printf("%s 127.0.0.1:%d\n", s.Dir(), s.Port())
	select {}
}

type fakeM func() int

func (f fakeM) Run() int { return f() }

func TestRunDropsTemplatesAfterTheTests(t *testing.T) {
	t.Parallel()
	server := serverURL(t)
	var templates dbtest.Templates
	var name string
	var stderr bytes.Buffer
	code := dbtest.Run(fakeM(func() int {
		var err error
		name, err = templates.Get(server, "a", func(string) error { return nil })
		if err != nil {
			t.Error(err)
		}
		if !databaseExists(t, server, name) {
			t.Error("the template is missing while the tests run")
		}
		return 0
	}), &templates, &stderr, func() error { return nil })
	if code != 0 || stderr.Len() != 0 {
		t.Errorf("got code %d, said %q; want 0 and nothing", code, stderr.String())
	}
	if databaseExists(t, server, name) {
		t.Error("the template is still there after the tests")
	}
}

func TestRunCode(t *testing.T) {
	t.Parallel()
	leak := errors.New("goroutine 7 in state sleep")
	for _, tc := range []struct {
		name  string
		tests int
		leaks error
		want  int
		says  string
	}{
		{name: "passed", want: 0},
		{name: "passed and leaked", leaks: leak, want: 1, says: "goroutine 7"},
		{name: "failed", tests: 3, want: 3},
		{name: "failed and leaked", tests: 3, leaks: leak, want: 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var stderr bytes.Buffer
			got := dbtest.Run(fakeM(func() int { return tc.tests }), &dbtest.Templates{}, &stderr, func() error { return tc.leaks })
			if got != tc.want {
				t.Errorf("got code %d, want %d", got, tc.want)
			}
			if said := stderr.String(); !strings.Contains(said, tc.says) || (tc.says == "" && said != "") {
				t.Errorf("said %q, want %q", said, tc.says)
			}
		})
	}
}

// eventually waits until the condition holds, and fails the test if it does
// not within a time that no working machine needs.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited a minute in vain: %s", what)
		case <-tick.C:
		}
	}
}
