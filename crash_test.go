package delivery_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// victimEnv tells a copy of the test's own binary to be the process that is killed: driver, data source, log file.
const victimEnv = "DELIVERY_TEST_VICTIM"

const (
	victimWorkers = 8
	victimLease   = 3 * time.Second // longer than a busy machine keeps a heartbeat waiting
)

// victim runs a service until it is killed. It writes a line for each item that it has delivered, before the service
// knows.
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
	h := handler.Func(func(_ context.Context, r *handler.Request, _ script) (*handler.Result, error) {
		_, err := fmt.Fprintln(log, r.ItemID)
		return nil, err
	})
	svc, err := delivery.New(db, delivery.WithHandler("fake", h), delivery.WithWorkers(victimWorkers), lease(victimLease))
	if err != nil {
		panic(err)
	}
	panic(svc.Run(context.Background()))
}

// A process that is killed in the middle of Run loses nothing, and repeats at most what it held.
func TestKilledProcessLosesNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sqlite", "lib/pq"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const items, kills = 2000, 5
			db, driver, dsn := openNamed(t, name)
			svc := service(t, db, &fake{}, lease(victimLease))
			acme := svc.Org("acme")
			var ids []string
			for range 5 {
				ids = append(ids, create(t, acme, destination.Spec{Config: script{Name: "n"}}).ID)
			}
			reqs := make([]delivery.Request, items)
			for i := range reqs {
				reqs[i] = delivery.Request{Payload: payload.JSON(i), Destinations: ids[i%len(ids) : i%len(ids)+1]}
			}
			receipts := must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), reqs))
			log := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(log, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx := within(t, 2*time.Minute)
			for kill := range kills {
				cmd := exec.CommandContext(ctx, os.Args[0])
				cmd.Env = append(os.Environ(), victimEnv+"="+strings.Join([]string{driver, dsn, log}, "\n"))
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				goal := (kill+1)*items/(kills+2) + rand.IntN(50)
				waitFor(ctx, t, func() bool { return len(lines(t, log)) >= goal })
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait() // killed
			}
			last := exec.CommandContext(ctx, os.Args[0])
			last.Env = append(os.Environ(), victimEnv+"="+strings.Join([]string{driver, dsn, log}, "\n"))
			if err := last.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(ctx, t, func() bool { return count(t, db, "delivery_queue") == 0 })
			_ = last.Process.Kill()
			_ = last.Wait()

			seen := map[string]int{}
			for _, id := range lines(t, log) {
				seen[id]++
			}
			repeated := 0
			for _, r := range receipts {
				n := seen[r.Items[0].ID]
				if n == 0 {
					t.Errorf("item %s was lost", r.Items[0].ID)
				}
				repeated += n - 1
			}
			if most := kills * 2 * victimWorkers; repeated > most {
				t.Errorf("%d items were repeated, at most %d were held when a process was killed", repeated, most)
			}
			if n := count(t, db, fmt.Sprintf("delivery_attempts where state = %d", queue.Delivered)); n != items {
				t.Errorf("%d items of %d are on record as delivered", n, items)
			}
			t.Logf("%d items, %d kills, %d repeated", items, kills, repeated)
		})
	}
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

// waitFor returns once the condition holds, and fails the test when ctx ends first.
func waitFor(ctx context.Context, t *testing.T, condition func() bool) {
	t.Helper()
	for tick := time.NewTicker(5 * time.Millisecond); !condition(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			t.Fatal("the time is over")
		}
	}
}
