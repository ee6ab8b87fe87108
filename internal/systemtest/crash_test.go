package systemtest_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// victimEnv tells a copy of the test's own binary to be a process that is killed or stopped:
// driver, data source, log file, and how it behaves.
const victimEnv = "DELIVERY_TEST_VICTIM"

const (
	victimWorkers = 8
	victimLease   = 3 * time.Second // longer than a busy machine keeps a heartbeat waiting

	runs   = "runs"   // writes a line for each item that it has delivered, before the service knows
	stalls = "stalls" // makes one pass, says when an attempt has begun, and fails it once the log file has a companion
)

func victim() {
	args := strings.Split(os.Getenv(victimEnv), "\n")
	db, err := sql.Open(args[0], args[1])
	if err != nil {
		panic(err)
	}
	log, err := os.OpenFile(args[2], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	h := handler.Func(func(_ context.Context, r *handler.Request, _ testkit.Script) (*handler.Result, error) {
		_, err := fmt.Fprintln(log, r.ItemID)
		if args[3] == runs {
			return nil, err
		}
		for tick := time.Tick(time.Millisecond); ; <-tick {
			if _, err := os.Stat(args[2] + goOn); err == nil {
				return nil, handler.Permanent(errors.New("of a stalled worker"))
			}
		}
	})
	svc, err := delivery.New(db, delivery.WithHandler("fake", h), delivery.WithWorkers(victimWorkers), testkit.Lease(victimLease), testkit.LogTo(io.Discard))
	if err != nil {
		panic(err)
	}
	if args[3] == runs {
		panic(svc.Run(context.Background()))
	}
	pass, err := svc.ProcessDue(context.Background())
	fmt.Fprintf(log, "%d dead, %v\n", pass.Dead, err)
	os.Exit(0)
}

const goOn = ".go-on"

// newVictim starts a victim, which ends with the test at the latest.
func newVictim(ctx context.Context, t *testing.T, driver, dsn, log, behaviour string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+strings.Join([]string{driver, dsn, log, behaviour}, "\n"))
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func emptyFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Four processes of which one after another is killed lose nothing, and repeat at most what they
// held. What the last of them held is taken up again within a lease and a sweep.
func TestKilledProcessesLoseNothing(t *testing.T) {
	t.Parallel()
	items, kills, most := 3000, 8, 2*time.Minute
	if testkit.Soak {
		items, kills, most = 1_000_000, 200, 2*time.Hour
	}
	for _, name := range []string{"sqlite", "lib/pq"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const processes = 4
			db, driver, dsn := testkit.OpenNamed(t, name)
			svc := testkit.Service(t, db, &testkit.Fake{}, testkit.Lease(victimLease))
			acme := svc.Org("acme")
			var ids []string
			for range 5 {
				ids = append(ids, testkit.Create(t, acme, destination.Spec{Config: testkit.Script{Name: "n"}}).ID)
			}
			seen := make(map[string]int, items)
			for len(seen) < items {
				reqs := make([]delivery.Request, min(1000, items-len(seen)))
				for i := range reqs {
					reqs[i] = delivery.Request{Payload: payload.JSON(i), Destinations: ids[i%len(ids) : i%len(ids)+1]}
				}
				for _, r := range testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t) {
					seen[r.Items[0].ID] = 0
				}
			}
			log := emptyFile(t)
			ctx := testkit.Within(t, most)
			delivered := func() int {
				info := testkit.Try(os.Stat(log)).Must(t)
				return int(info.Size()) / len("00000000-0000-7000-8000-000000000000-1\n")
			}
			kill := func(v *exec.Cmd) {
				if err := v.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				_ = v.Wait() // killed
			}
			var victims [processes]*exec.Cmd
			for i := range victims {
				victims[i] = newVictim(ctx, t, driver, dsn, log, runs)
			}
			for n := range kills - processes {
				goal := (n+1)*items/(kills+2) + rand.IntN(50)
				testkit.WaitFor(ctx, t, func() bool { return delivered() >= goal })
				i := rand.IntN(processes)
				kill(victims[i])
				victims[i] = newVictim(ctx, t, driver, dsn, log, runs)
			}
			for _, v := range victims {
				kill(v)
			}
			killed := time.Now()
			held := testkit.Count(t, db, "delivery_queue where lease <> 0")
			newVictim(ctx, t, driver, dsn, log, runs)
			testkit.WaitFor(ctx, t, func() bool { return testkit.Count(t, db, "delivery_queue") == 0 })

			for _, id := range lines(t, log) {
				seen[id]++
			}
			repeated := 0
			for id, n := range seen {
				if n == 0 {
					t.Errorf("item %s was lost", id)
				}
				repeated += n - 1
			}
			if most := kills * 2 * victimWorkers; repeated > most {
				t.Errorf("%d items were repeated, at most %d were held when a process was killed", repeated, most)
			}
			if n := testkit.Count(t, db, fmt.Sprintf("delivery_attempts where state = %d", queue.Delivered)); n != items {
				t.Errorf("%d items of %d are on record as delivered", n, items)
			}
			var last time.Time
			if err := db.QueryRowContext(t.Context(), fmt.Sprintf("select max(ended_at) from delivery_attempts where reason = %d", queue.LeaseLost)).
				Scan(sqlstore.Time{T: &last}); err != nil {
				t.Fatal(err)
			}
			recovery := last.Sub(killed)
			t.Logf("%d items, %d kills, %d repeated; %d held by the last, taken up again after at most %s", items, kills, repeated, held, recovery)
			if sweep := 2 * time.Second; testkit.Soak && recovery > victimLease+sweep {
				t.Errorf("what was held was taken up again after %s", recovery)
			}
		})
	}
}

// A process that is stopped until its lease has ended, and another has delivered its item, changes
// nothing as it goes on.
func TestStoppedProcessOverwritesNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sqlite", "lib/pq"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, driver, dsn := testkit.OpenNamed(t, name)
			f := &testkit.Fake{}
			f.Do = func(context.Context, *handler.Request) (*handler.Result, error) {
				return &handler.Result{Reference: handler.Reference{ID: "ours"}}, nil
			}
			svc := testkit.Service(t, db, f, testkit.Lease(victimLease))
			acme := svc.Org("acme")
			testkit.Create(t, acme, destination.Spec{Default: true, Config: testkit.Script{Name: "n"}})
			id := testkit.Send(t, acme, delivery.Request{})
			log := emptyFile(t)
			ctx := testkit.Within(t, time.Minute)
			v := newVictim(ctx, t, driver, dsn, log, stalls)
			testkit.WaitFor(ctx, t, func() bool { return len(lines(t, log)) == 1 })
			// A process that is stopped as it writes keeps SQLite locked: that is no matter of
			// leases.
			testkit.WaitFor(ctx, t, func() bool {
				if err := v.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				var stopped syscall.WaitStatus
				if _, err := syscall.Wait4(v.Process.Pid, &stopped, syscall.WUNTRACED, nil); err != nil || !stopped.Stopped() {
					t.Fatal(stopped, err)
				}
				if driver != "sqlite" || writable(ctx, t, db) {
					return true
				}
				if err := v.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				return false
			})
			testkit.Run(t, svc)
			delivered := testkit.Try(acme.WaitFor(ctx, id)).Must(t)
			if err := os.WriteFile(log+goOn, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := v.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			testkit.WaitFor(ctx, t, func() bool { return len(lines(t, log)) == 2 })
			if got := lines(t, log)[1]; got != "0 dead, <nil>" {
				t.Errorf("the stopped process took its failure for recorded: %s", got)
			}
			after := testkit.Status(t, acme, id)
			if diff := cmp.Diff(testkit.Show(delivered), testkit.Show(after)); diff != "" {
				t.Error(diff)
			}
			attempts := after.Items[0].Attempts
			if after.State != queue.Completed || len(attempts) != 2 || attempts[0].Reason != queue.LeaseLost || attempts[1].Reference.ID != "ours" {
				t.Errorf("it is %s", testkit.Show(after))
			}
			if n := testkit.Count(t, db, "delivery_dead_letters"); n != 0 {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}

// writable reports whether nobody keeps SQLite's lock for long.
func writable(ctx context.Context, t *testing.T, db *sql.DB) bool {
	t.Helper()
	conn := testkit.Try(db.Conn(ctx)).Must(t)
	defer conn.Close()
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := conn.ExecContext(short, "begin immediate"); err != nil {
		return false
	}
	_, err := conn.ExecContext(ctx, "rollback")
	return err == nil
}

func lines(t *testing.T, file string) (all []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		all = append(all, s.Text())
	}
	return all
}
