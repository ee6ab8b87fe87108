// Command withpg runs a command with a PostgreSQL server for its tests:
//
//	go run ./internal/dbtest/withpg -- go test -race ./...
//
// If DELIVERY_TEST_DATABASE_URL is set, withpg uses that server. Otherwise it
// starts a throwaway server for as long as the command runs, and sets the
// variable for the command.
//
// The exit code is the command's, or 128 plus the number of the signal that ended
// it. It is 125 if the server could not be started or stopped, 126 if the command
// could not be run, and 2 for wrong arguments.
//
// Signals are passed on. If standard input is a terminal, the terminal itself
// interrupts the command and all processes that it started. Otherwise withpg
// passes the signal to all of them, and kills them on the second one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"github.com/deliverykit/delivery/internal/dbtest"
)

const (
	exitUsage  = 2
	exitServer = 125
	exitRun    = 126
)

func main() {
	// SIGINT, SIGTERM and the like must reach the command and leave withpg to
	// stop the server, from before there is one.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	os.Exit(run(os.Args[1:], os.Environ(), stdio{os.Stdin, os.Stdout, os.Stderr}, signals))
}

type stdio struct {
	in       *os.File
	out, err io.Writer
}

type options struct {
	server   dbtest.Options
	variable string
	command  []string
}

func run(args, env []string, std stdio, signals <-chan os.Signal) int {
	o, err := parse(args, std.err)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		say(std.err, "%v", err)
		return exitUsage
	}

	if given := lookup(env, dbtest.EnvURL); given != "" {
		say(std.err, "using the PostgreSQL server of %s, which is set; it is left running", dbtest.EnvURL)
		return execute(o.command, withVariable(env, o.variable, given), std, signals)
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan struct{})
	interrupted := make(chan os.Signal, 1)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case sig := <-signals:
			interrupted <- sig
			cancel()
		case <-started:
		}
	}()
	server, err := dbtest.Start(ctx, o.server)
	close(started)
	<-watching
	if err != nil {
		select {
		case sig := <-interrupted:
			say(std.err, "stopped by %v before the command ran", sig)
			return signalCode(sig)
		default:
		}
		say(std.err, "%v", err)
		return exitServer
	}
	say(std.err, "%s is not set: started a throwaway PostgreSQL %s from %s on port %d (fsync %s)",
		dbtest.EnvURL, server.Version(), server.Binaries(), server.Port(), onOff(o.server.Fsync))

	var code int
	select {
	case sig := <-interrupted:
		say(std.err, "stopped by %v before the command ran", sig)
		code = signalCode(sig)
	default:
		env = append(env, dbtest.EnvURL+"="+server.URL())
		code = execute(o.command, withVariable(env, o.variable, server.URL()), std, signals)
	}
	if err := server.Stop(); err != nil {
		say(std.err, "%v", err)
		return exitServer
	}
	say(std.err, "stopped the throwaway PostgreSQL and removed its data")
	return code
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{server: dbtest.Options{Settings: map[string]string{
		// UTC+05:45, so that code which forgets UTC shows.
		"timezone": "Asia/Kathmandu",
	}}}
	flags := flag.NewFlagSet("withpg", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprintf(stderr, "usage: withpg [flags] [--] command [argument...]\n\n"+
			"Runs the command with %s set: as it is, or to a throwaway server.\n\n", dbtest.EnvURL)
		flags.PrintDefaults()
	}
	flags.BoolVar(
		&o.server.Fsync, "fsync", false,
		"make the throwaway server's commits durable, as in production: for benchmarks",
	)
	flags.StringVar(&o.variable, "env", "", "set the environment variable `name` to the server's URL as well")
	flags.Func(
		"set",
		"configure the throwaway server with `setting=value`; can be given more than once",
		func(kv string) error {
			k, v, ok := strings.Cut(kv, "=")
			if !ok || k == "" {
				return errors.New("want setting=value")
			}
			o.server.Settings[k] = v
			return nil
		},
	)
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	o.command = flags.Args()
	if len(o.command) == 0 {
		return options{}, errors.New("no command to run: withpg [flags] -- command [argument...]")
	}
	return o, nil
}

// execute runs the command and returns the code to exit with.
func execute(command, env []string, std stdio, signals <-chan os.Signal) int {
	cmd := exec.CommandContext(context.Background(), command[0], command[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = std.in, std.out, std.err
	group := !isTerminal(std.in)
	if group {
		ownGroup(cmd)
	}
	if err := cmd.Start(); err != nil {
		say(std.err, "running the command: %v", err)
		return exitRun
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for received := 0; ; {
		select {
		case err := <-ended:
			return exitCode(std.err, err)
		case sig := <-signals:
			received++
			if group && received > 1 {
				sig = os.Kill
			}
			if err := pass(cmd.Process, sig, group); err != nil && !errors.Is(err, os.ErrProcessDone) {
				say(std.err, "passing on %v: %v", sig, err)
			}
		}
	}
}

func exitCode(stderr io.Writer, err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		say(stderr, "running the command: %v", err)
		return exitRun
	case exit.Exited():
		return exit.ExitCode()
	default:
		say(stderr, "the command ended: %v", err)
		return signalled(exit)
	}
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && !os.SameFile(info, null)
}

func lookup(env []string, name string) string {
	value := ""
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value = v
		}
	}
	return value
}

func withVariable(env []string, name, value string) []string {
	if name == "" {
		return env
	}
	return append(env, name+"="+value)
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, "withpg: "+format+"\n", args...)
}
