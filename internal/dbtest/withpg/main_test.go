//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/deliverykit/delivery/internal/dbtest"
)

const (
	actEnv = "DELIVERY_WITHPG_ACT"
	given  = "postgres://given@127.0.0.1:1/postgres?sslmode=disable"
)

func TestMain(m *testing.M) {
	if act := os.Getenv(actEnv); act != "" {
		os.Exit(perform(act))
	}
	goleak.VerifyTestMain(m)
}

// perform is what this test binary does as the command that withpg runs.
func perform(act string) int {
	switch act {
	case "show":
		fmt.Println(os.Getenv(dbtest.EnvURL), os.Getenv("OTHER"))
		return 7
	case "echo":
		_, _ = io.Copy(os.Stdout, os.Stdin)
		return 0
	case "wait":
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGTERM)
		fmt.Println("ready")
		fmt.Println("caught", <-caught)
		return 3
	case "parent": // ignores the signal that its child must get all the same
		signal.Ignore(syscall.SIGTERM)
		child := exec.CommandContext(context.Background(), os.Args[0])
		child.Env = append(os.Environ(), actEnv+"=wait")
		child.Stdout = os.Stdout
		if err := child.Run(); child.ProcessState == nil {
			fmt.Println(err)
			return 1
		}
		return child.ProcessState.ExitCode()
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	default:
		return 99
	}
}

func env(act string, more ...string) []string {
	e := []string{actEnv + "=" + act}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); name != dbtest.EnvURL {
			e = append(e, kv)
		}
	}
	return append(e, more...)
}

// needServer skips a test that starts servers where dbtest.Cluster would.
func needServer(t *testing.T) {
	t.Helper()
	if os.Getenv(dbtest.EnvSkip) == "1" && os.Getenv("CI") == "" {
		t.Skip("SKIPPED, NOT TESTED: " + dbtest.EnvSkip + " is set")
	}
}

func TestAGivenServerIsUsed(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	code := run([]string{"-env", "OTHER", "--", os.Args[0]}, env("show", dbtest.EnvURL+"="+given), stdio{nil, &out, &errs}, nil)
	if want := given + " " + given + "\n"; code != 7 || out.String() != want {
		t.Errorf("got code %d and %q, want 7 and %q", code, out.String(), want)
	}
	if !strings.Contains(errs.String(), "left running") || strings.Contains(errs.String(), "throwaway") {
		t.Errorf("said %q", errs.String())
	}
}

func TestAThrowawayServerIsStarted(t *testing.T) {
	t.Parallel()
	needServer(t)
	var out, errs bytes.Buffer
	code := run([]string{"-env", "OTHER", "-set", "work_mem=5MB", os.Args[0]}, env("show"), stdio{nil, &out, &errs}, nil)
	url, other, _ := strings.Cut(strings.TrimSpace(out.String()), " ")
	if code != 7 || !strings.HasPrefix(url, "postgres://postgres@127.0.0.1:") || other != url {
		t.Errorf("got code %d and %q, want 7 and the server's URL twice", code, out.String())
	}
	for _, part := range []string{"throwaway PostgreSQL", "port", "stopped"} {
		if !strings.Contains(errs.String(), part) {
			t.Errorf("said %q, want it to say %q", errs.String(), part)
		}
	}
}

func TestAServerThatDoesNotStart(t *testing.T) {
	t.Parallel()
	needServer(t)
	var out, errs bytes.Buffer
	code := run([]string{"-set", "work_mem=much", "--", os.Args[0]}, env("show"), stdio{nil, &out, &errs}, nil)
	if code != exitServer || out.Len() != 0 || !strings.Contains(errs.String(), "work_mem") {
		t.Errorf("got code %d, output %q, said %q; want %d, nothing run, and why", code, out.String(), errs.String(), exitServer)
	}
}

func TestASignalWhileTheServerStarts(t *testing.T) {
	t.Parallel()
	needServer(t)
	var out, errs bytes.Buffer
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGINT
	code := run([]string{"--", os.Args[0]}, env("show"), stdio{nil, &out, &errs}, signals)
	if code != 130 || out.Len() != 0 || !strings.Contains(errs.String(), "before the command ran") {
		t.Errorf("got code %d, output %q, said %q; want 130 and nothing run", code, out.String(), errs.String())
	}
}

func TestWrongCalls(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		args []string
		want int
		says string
	}{
		{name: "no command", args: []string{"-fsync", "--"}, want: exitUsage, says: "no command"},
		{name: "unknown flag", args: []string{"-nonsense", "--", "true"}, want: exitUsage, says: "nonsense"},
		{name: "setting without value", args: []string{"-set", "work_mem", "--", "true"}, want: exitUsage, says: "setting=value"},
		{name: "missing program", args: []string{"--", "./no-such-program"}, want: exitRun, says: "no-such-program"},
		{name: "help", args: []string{"-help"}, want: 0, says: "usage: withpg"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var errs bytes.Buffer
			code := run(tc.args, env("show", dbtest.EnvURL+"="+given), stdio{nil, io.Discard, &errs}, nil)
			if code != tc.want || !strings.Contains(errs.String(), tc.says) {
				t.Errorf("got code %d, said %q; want %d and %q", code, errs.String(), tc.want, tc.says)
			}
		})
	}
}

func TestStandardInputIsPassedOn(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := w.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if code := run([]string{os.Args[0]}, env("echo", dbtest.EnvURL+"="+given), stdio{r, &out, io.Discard}, nil); code != 0 || out.String() != "hello" {
		t.Errorf("got code %d and %q, want 0 and what was put in", code, out.String())
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, act string
		signals   int
		want      int
		says      string
	}{
		{name: "reach the command", act: "wait", signals: 1, want: 3, says: "caught terminated"},
		{name: "reach what the command started", act: "parent", signals: 1, want: 3, says: "caught terminated"},
		{name: "the second kills", act: "stubborn", signals: 2, want: 128 + int(syscall.SIGKILL)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			signals := make(chan os.Signal)
			code := make(chan int, 1)
			go func() {
				code <- run([]string{os.Args[0]}, env(tc.act, dbtest.EnvURL+"="+given), stdio{nil, w, io.Discard}, signals)
				_ = w.Close()
			}()
			lines := bufio.NewReader(r)
			if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
				t.Fatalf("the command said %q, %v; want that it is ready", line, err)
			}
			for range tc.signals {
				select {
				case signals <- syscall.SIGTERM:
				case <-time.After(time.Minute):
					t.Fatal("withpg takes no signal")
				}
			}
			rest, err := io.ReadAll(lines)
			if err != nil {
				t.Fatal(err)
			}
			if got := <-code; got != tc.want || !strings.Contains(string(rest), tc.says) {
				t.Errorf("got code %d and %q, want %d and %q", got, rest, tc.want, tc.says)
			}
		})
	}
}
