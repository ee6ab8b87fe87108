package deliverytest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestCrash(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme", deliverytest.Crash(), deliverytest.OK())
	receipt := deliver(t, kit.DeliveryService, "x")
	kit.Process()
	s := status(t, kit.DeliveryService, receipt.ID)
	if i := s.Items[0]; i.State != queue.Processing || len(i.Attempts) != 0 {
		t.Errorf("after the crash the item is %+v", i)
	}
	d.RequireDelivered(0)
	kit.Advance(time.Minute)
	wantMoments(t, d, "1:0s", "1:30s")
	d.RequireDelivered(1)
	s = status(t, kit.DeliveryService, receipt.ID)
	if i := s.Items[0]; i.State != queue.Delivered || len(i.Attempts) != 2 || i.Attempts[0].Reason != queue.LeaseLost || i.Attempts[1].Number != 1 {
		t.Errorf("item is %+v", i)
	}
}

func TestCrashTakesNoOtherItemAlong(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme", deliverytest.OK(), deliverytest.Crash(), deliverytest.Times(49, deliverytest.OK()))
	for range 50 {
		deliver(t, kit.DeliveryService, "x")
	}
	kit.Process()
	d.RequireAttempts(50)
	d.RequireDelivered(49)
	kit.Advance(30 * time.Second)
	d.RequireDelivered(50)
}

func TestCrashThreeTimes(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme", deliverytest.Times(3, deliverytest.Crash()))
	receipt := deliver(t, kit.DeliveryService, "x")
	kit.Advance(time.Hour)
	wantMoments(t, d, "1:0s", "1:30s", "1:1m0s")
	i := status(t, kit.DeliveryService, receipt.ID).Items[0]
	if i.State != queue.Dead || i.Reason != queue.Poison || i.EndedAt.Sub(kit.Now()) != 90*time.Second-time.Hour {
		t.Errorf("item is %+v", i)
	}
}

// While a lease outlasts its item's deadline, the queue has something overdue that no pass can
// touch.
func TestCrashBeforeDeadline(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	kit.Destination("acme", deliverytest.Crash())
	begun := kit.Now()
	receipt := request(t, kit.DeliveryService, delivery.Request{Payload: payload.JSON(1), Deadline: begun.Add(10 * time.Second)})
	kit.Advance(time.Hour)
	i := status(t, kit.DeliveryService, receipt.ID).Items[0]
	if i.State != queue.Dead || i.Reason != queue.DeadlinePassed || i.EndedAt.Sub(begun) != 30*time.Second {
		t.Errorf("item ended %v after the start: %+v", i.EndedAt.Sub(begun), i)
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	gone := handler.FromHTTP(410, nil, nil)
	for name, c := range map[string]struct {
		step     deliverytest.Step
		category handler.Category
		status   int
		state    queue.State
		wait     time.Duration
	}{
		"fail":        {deliverytest.Fail(errLuck), handler.Uncategorized, 0, queue.Scheduled, time.Second},
		"wrapped":     {deliverytest.Fail(fmt.Errorf("here: %w", handler.Fail(handler.Capacity, errLuck))), handler.Capacity, 0, queue.Scheduled, time.Second},
		"retry after": {deliverytest.Fail(handler.RateLimited(7*time.Minute, errLuck)), handler.RateLimit, 0, queue.Scheduled, 7 * time.Minute},
		"permanent":   {deliverytest.Fail(handler.Permanent(errLuck)), handler.Uncategorized, 0, queue.Dead, 0},
		"gone":        {deliverytest.Fail(gone), handler.Configuration, 410, queue.Dead, 0},
		"hang":        {deliverytest.Hang(), handler.Timeout, 0, queue.Scheduled, time.Second},
		"panic":       {deliverytest.Panic("ouch"), handler.Uncategorized, 0, queue.Scheduled, time.Second},
		"do": {deliverytest.Do(func(_ context.Context, req *handler.Request) (*handler.Result, error) {
			return nil, handler.Fail(handler.Network, fmt.Errorf("attempt %d", req.Attempt))
		}), handler.Network, 0, queue.Scheduled, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kit := deliverytest.New(t)
			d := kit.Destination("acme", c.step)
			receipt := deliver(t, kit.DeliveryService, "x")
			kit.Process()
			if a := d.RequireAttempts(1)[0]; a.Err == nil || string(a.Content) != "x" || a.Step != c.step.String() {
				t.Errorf("recorded %+v", a)
			}
			i := status(t, kit.DeliveryService, receipt.ID).Items[0]
			e := i.Attempts[0].Error
			if i.State != c.state || e == nil || e.Category != c.category || e.StatusCode != c.status {
				t.Errorf("item is %+v with error %+v", i, e)
			}
			if wait := i.NextAttempt.Sub(kit.Now()); c.wait > 0 && wait != c.wait {
				t.Errorf("waits %v, want %v", wait, c.wait)
			}
		})
	}
}

func TestDisabledIsHeld(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme", deliverytest.Fail(handler.Gone(errLuck)), deliverytest.OK())
	deliver(t, kit.DeliveryService, "first")
	kit.Process()
	deliver(t, kit.DeliveryService, "second")
	kit.Advance(time.Hour)
	d.RequireAttempts(1)
	if _, err := kit.Org("acme").Destinations().Update(t.Context(), d.ID(), destination.Patch{Disabled: destination.Set(false)}); err != nil {
		t.Fatal(err)
	}
	kit.Process()
	if a := d.RequireDelivered(1)[0]; string(a.Content) != "second" {
		t.Errorf("delivered %q", a.Content)
	}
}

func TestRecordsTheRequest(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme")
	receipt := request(t, kit.DeliveryService, delivery.Request{
		Topic: "report.finished", Payload: payload.Bytes("r.csv", []byte("a,b")), Metadata: map[string]string{"k": "v"},
	})
	kit.Process()
	a := d.RequireDelivered(1)[0]
	if !a.At.Equal(kit.Now()) || a.Number != 1 || a.MessageID != receipt.Items[0].ID || a.DeliveryID != receipt.ID ||
		a.ItemID != receipt.Items[0].ID || a.Topic != "report.finished" || a.Metadata["k"] != "v" || a.Payload.Name != "r.csv" ||
		string(a.Content) != "a,b" || a.Step != "Always(OK())" || a.Err != nil {
		t.Errorf("recorded %+v", a)
	}
	a.Metadata["k"], a.Content[0] = "changed", 'X'
	if b := d.Attempts()[0]; b.Metadata["k"] != "v" || string(b.Content) != "a,b" {
		t.Errorf("the record can be changed: %+v", b)
	}
	if d.Organization() != "acme" || receipt.Items[0].Destination != d.ID() {
		t.Errorf("it is %s of %s, the item is for %s", d.ID(), d.Organization(), receipt.Items[0].Destination)
	}
}

func TestLargeContent(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	d := kit.Destination("acme")
	large := strings.Repeat("0123456789", 300_000)
	request(t, kit.DeliveryService, delivery.Request{Payload: payload.Reader("export", strings.NewReader(large))})
	kit.Process()
	if a := d.RequireDelivered(1)[0]; string(a.Content) != large {
		t.Errorf("recorded %d bytes", len(a.Content))
	}
}

type brokenSource struct{}

func (brokenSource) Open(context.Context, string, string) (*payload.Content, error) {
	return payload.NewContent(payload.Info{Size: -1}, func(context.Context, int64) (io.ReadCloser, error) {
		return nil, errLuck
	}), nil
}

func TestUnreadablePayloadTakesNoStep(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t, delivery.WithSource("broken", brokenSource{}))
	d := kit.Destination("acme", deliverytest.OK())
	request(t, kit.DeliveryService, delivery.Request{Payload: payload.Ref("broken", "x")})
	kit.Process()
	if a := d.RequireAttempts(1)[0]; !errors.Is(a.Err, errLuck) {
		t.Errorf("recorded %+v", a)
	}
	deliver(t, kit.DeliveryService, "readable")
	kit.Process()
	d.RequireDelivered(1)
}

func TestScripts(t *testing.T) {
	t.Parallel()
	fail, ok := deliverytest.Fail(errLuck), deliverytest.OK()
	for name, c := range map[string]struct {
		script []deliverytest.Step
		want   string // per delivery, without retries
	}{
		"none":         {nil, "++++++"},
		"always":       {[]deliverytest.Step{deliverytest.Always(fail)}, "------"},
		"in order":     {[]deliverytest.Step{fail, ok, fail, deliverytest.Always(ok)}, "-+-+++"},
		"times":        {[]deliverytest.Step{deliverytest.Times(2, fail), deliverytest.Times(4, ok)}, "--++++"},
		"no times":     {[]deliverytest.Step{deliverytest.Times(0, fail), deliverytest.Times(6, ok)}, "++++++"},
		"times times":  {[]deliverytest.Step{deliverytest.Times(2, deliverytest.Times(2, fail)), deliverytest.Times(2, ok)}, "----++"},
		"always times": {[]deliverytest.Step{ok, deliverytest.Always(deliverytest.Times(2, fail))}, "+-----"},
		"fail nil":     {[]deliverytest.Step{deliverytest.Fail(nil), deliverytest.Always(fail)}, "+-----"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kit := deliverytest.New(t, delivery.WithRetry(retry.Policy{Retries: retry.None}))
			d := kit.Destination("acme", c.script...)
			for range len(c.want) {
				deliver(t, kit.DeliveryService, "x")
			}
			kit.Process()
			got := ""
			for _, a := range d.RequireAttempts(len(c.want)) {
				if a.Err == nil {
					got += "+"
				} else {
					got += "-"
				}
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// A step that moves the clock plays an attempt that takes its time. Once it outlasts its lease,
// another worker has the item, and what the first returns changes nothing.
func TestStalledAttempt(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	begun := kit.Now()
	d := kit.Destination("acme",
		deliverytest.Do(func(context.Context, *handler.Request) (*handler.Result, error) {
			kit.Advance(31 * time.Second)
			return nil, handler.Permanent(errLuck)
		}),
		deliverytest.OK())
	receipt := deliver(t, kit.DeliveryService, "x")
	kit.Process()
	second := d.RequireAttempts(2)[1] // made by either pass, the one in Process or the one in Advance
	if after := second.At.Sub(begun); second.Number != 1 || after < 30*time.Second || after > 31*time.Second {
		t.Errorf("the second attempt has number %d and began after %v", second.Number, after)
	}
	if i := status(t, kit.DeliveryService, receipt.ID).Items[0]; i.State != queue.Delivered {
		t.Errorf("item is %+v", i)
	}
}
