package deliverytest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// exampleT is what an example has in place of a test's *testing.T.
type exampleT struct {
	testing.TB
	cleanups []func()
}

func (t *exampleT) Helper()                           {}
func (t *exampleT) Output() io.Writer                 { return io.Discard }
func (t *exampleT) Cleanup(f func())                  { t.cleanups = append([]func(){f}, t.cleanups...) }
func (t *exampleT) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (t *exampleT) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (t *exampleT) end() {
	for _, f := range t.cleanups {
		f()
	}
}

// A host's test of what becomes of a report while its receiver is away for two hours. In a test, t
// is its *testing.T.
func Example() {
	t := new(exampleT)
	defer t.end()

	kit := deliverytest.New(t, delivery.WithRetry(retry.Policy{Retries: 5, First: time.Hour, Max: 12 * time.Hour}))
	siem := kit.Destination("acme",
		deliverytest.Times(2, deliverytest.Fail(errors.New("connection refused"))),
		deliverytest.OK())

	receipt, err := kit.Org("acme").Deliver(context.Background(), delivery.Request{
		Topic: "report.finished", Payload: payload.JSON(map[string]int{"rows": 42}),
	})
	if err != nil {
		t.Fatalf("%v", err)
	}

	kit.Process()
	siem.RequireAttempts(1)
	siem.RequireDelivered(0)

	kit.Advance(24 * time.Hour)
	for _, a := range siem.RequireAttempts(3) {
		fmt.Printf("%s  attempt %d  %s  %v\n", a.At.Format(time.TimeOnly), a.Number, a.Content, a.Err)
	}

	status, err := kit.Org("acme").Status(context.Background(), receipt.ID)
	fmt.Println(status.State, err)

	// Output:
	// 12:00:00  attempt 1  {"rows":42}  connection refused
	// 13:00:00  attempt 2  {"rows":42}  connection refused
	// 15:00:00  attempt 3  {"rows":42}  <nil>
	// completed <nil>
}

// The process dies in the middle of an attempt. The item is still leased, and is attempted again
// when the lease runs out, with the same message id, so that the receiver can tell.
func ExampleCrash() {
	t := new(exampleT)
	defer t.end()

	kit := deliverytest.New(t)
	siem := kit.Destination("acme", deliverytest.Crash(), deliverytest.OK())
	if _, err := kit.Org("acme").Deliver(context.Background(), delivery.Request{Payload: payload.JSON("report")}); err != nil {
		t.Fatalf("%v", err)
	}

	kit.Advance(time.Minute)
	attempts := siem.RequireAttempts(2)
	siem.RequireDelivered(1)
	fmt.Println(attempts[1].At.Sub(attempts[0].At), attempts[0].MessageID == attempts[1].MessageID)

	// Output:
	// 30s true
}
