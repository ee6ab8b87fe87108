package deliverytest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

func TestRequireSaysWhatWasRecorded(t *testing.T) {
	t.Parallel()
	text := fails(t, func(r *recorder) {
		kit := deliverytest.New(r, delivery.WithRetry(hourly))
		d := kit.Destination("acme", deliverytest.Fail(handler.Fail(handler.Remote, errors.New("500\nafter a while"))), deliverytest.Hang(),
			deliverytest.Crash(), deliverytest.Panic("ouch"), deliverytest.OK())
		deliver(t, kit.DeliveryService, "line 1\nline 2")
		kit.Advance(3*time.Hour - time.Minute)
		d.RequireDelivered(1)
	})
	contains(t, text, "want 1 item delivered, got 0", `scripted 1 of "acme" recorded 4 attempts:`,
		"AT", "2026-01-01 12:00:00", "2026-01-01 14:00:30", "report.finished", "line 1 line 2", "Hang()",
		"transient, remote: 500 after a while", "transient, timeout: ", "crashed", "panicked",
		"the time is 2026-01-01 14:59:00; something falls due at 2026-01-01 15:00:30: call Advance(1m30s)")
	t.Log(text)
}

func TestRequirements(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		require func(d *deliverytest.Destination)
		want    []string
	}{
		"attempts":  {func(d *deliverytest.Destination) { d.RequireAttempts(2) }, []string{"want 2 attempts, got 1", "recorded 1 attempt:"}},
		"delivered": {func(d *deliverytest.Destination) { d.RequireDelivered(0) }, []string{"want 0 items delivered, got 1", "delivered\n"}},
		"nothing":   {func(d *deliverytest.Destination) { d.RequireNothing() }, []string{"want no attempt\n", "nothing was waiting for its time"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contains(t, fails(t, func(r *recorder) {
				kit := deliverytest.New(r)
				d := kit.Destination("acme")
				deliver(t, kit.DeliveryService, "x")
				kit.Process()
				c.require(d)
				t.Error("the test went on")
			}), c.want...)
		})
	}
}

func TestRequireBeforeProcess(t *testing.T) {
	t.Parallel()
	contains(t, fails(t, func(r *recorder) {
		kit := deliverytest.New(r)
		d := kit.Destination("acme")
		deliver(t, kit.DeliveryService, "x")
		d.RequireDelivered(1)
	}), "recorded 0 attempts\n", "nothing has been processed yet: call Process or Advance")
}

func TestUnderWay(t *testing.T) {
	t.Parallel()
	contains(t, fails(t, func(r *recorder) {
		kit := deliverytest.New(r)
		var d *deliverytest.Destination
		d = kit.Destination("acme", deliverytest.Do(func(context.Context, *handler.Request) (*handler.Result, error) {
			d.RequireDelivered(1)
			return nil, nil
		}))
		deliver(t, kit.DeliveryService, "x")
		kit.Process()
	}), "want 1 item delivered, got 0", "under way")
}

func TestUnscripted(t *testing.T) {
	t.Parallel()
	text := fails(t, func(r *recorder) {
		kit := deliverytest.New(r)
		d := kit.Destination("acme", deliverytest.Times(2, deliverytest.Fail(errLuck)), deliverytest.Fail(errLuck))
		receipt := deliver(t, kit.DeliveryService, "x")
		kit.Advance(time.Hour)
		if n := len(d.Attempts()); n != 4 { // the last ends the item: no more follow
			t.Errorf("%d attempts", n)
		}
		if i := status(t, kit.DeliveryService, receipt.ID).Items[0]; i.Attempts[3].Error.Message != "deliverytest: the attempt is not scripted" {
			t.Errorf("item is %+v", i)
		}
	})
	contains(t, text, "deliverytest: attempt 4 at ", `topic "report.finished", is not scripted`,
		"all 3 attempts of its script have been made: Times(2, Fail(no luck)), Fail(no luck)", "end the script with Always",
		"not scripted\n", "12:00:07")
}

func TestBadScripts(t *testing.T) {
	t.Parallel()
	for want, script := range map[string][]deliverytest.Step{
		"step 1 is an empty Step":                                         {{}},
		"step 2, Do(nil): the function is nil":                            {deliverytest.OK(), deliverytest.Do(nil)},
		"step 1, Times(-1, OK()): the number is negative":                 {deliverytest.Times(-1, deliverytest.OK())},
		"step 1, Times(2, Always(OK())): Always already has no end":       {deliverytest.Times(2, deliverytest.Always(deliverytest.OK()))},
		"step 2, Crash(), is never reached: step 1, Always(OK()), has no": {deliverytest.Always(deliverytest.OK()), deliverytest.Crash()},
		"step 1, Always(Times(3, Do(nil))): the function is nil":          {deliverytest.Always(deliverytest.Times(3, deliverytest.Do(nil)))},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			contains(t, fails(t, func(r *recorder) {
				deliverytest.New(r).Destination("acme", script...)
			}), want, `the script of a destination of "acme"`)
		})
	}
}

func TestBadUse(t *testing.T) {
	t.Parallel()
	nothing := handler.Func(func(context.Context, *handler.Request, struct{}) (*handler.Result, error) { return nil, nil })
	for want, use := range map[string]func(r *recorder){
		"deliverytest: option 2 is nil":                              func(r *recorder) { deliverytest.New(r, delivery.WithWorkers(2), nil) },
		"delivery: WithWorkers is given twice":                       func(r *recorder) { deliverytest.New(r, delivery.WithWorkers(2), delivery.WithWorkers(3)) },
		`deliverytest: the kit itself uses the type "scripted"`:      func(r *recorder) { deliverytest.New(r, delivery.WithHandler("scripted", nothing)) },
		"deliverytest: delivery: the database is nil":                func(r *recorder) { deliverytest.NewOn(r, nil) },
		"deliverytest: Advance(-1s): the clock cannot go back":       func(r *recorder) { deliverytest.New(r).Advance(-time.Second) },
		`deliverytest: creating a destination of ""`:                 func(r *recorder) { deliverytest.New(r).Destination("") },
		"deliverytest: Process: delivery: the service is closed":     func(r *recorder) { k := deliverytest.New(r); _ = k.Close(); k.Process() },
		"is of type \"scripted\", but Kit.Destination did not creat": func(r *recorder) { foreign(r, 7) },
		" of \"acme\" is of type \"scripted\", but Kit.Destination ": func(r *recorder) { foreign(r, 1) },
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			contains(t, fails(t, use), want)
		})
	}
}

// foreign is a host that makes a scripted destination by itself.
func foreign(r *recorder, script int) {
	kit := deliverytest.New(r)
	kit.Destination("globex")
	_, err := kit.Org("acme").Destinations().Create(context.Background(), destination.Spec{
		Label: "foreign", Default: true, Config: destination.As("scripted", fmt.Sprintf(`{"script": %d}`, script)),
	})
	if err == nil {
		_, err = kit.Org("acme").Deliver(context.Background(), delivery.Request{Payload: payload.JSON("x")})
	}
	if err != nil {
		panic(err)
	}
	kit.Process()
}

// The service logs to the test's output, at the time of the kit's clock.
func TestLog(t *testing.T) {
	t.Parallel()
	contains(t, fails(t, func(r *recorder) {
		kit := deliverytest.New(r)
		kit.Advance(90 * time.Second)
		d := kit.Destination("acme", deliverytest.Panic(fmt.Errorf("ouch")))
		deliver(t, kit.DeliveryService, "x")
		kit.Process()
		d.RequireDelivered(1)
	}), "time=2026-01-01T12:01:30.000Z level=ERROR", "an attempt ended badly", "the handler panicked: ouch")
}
