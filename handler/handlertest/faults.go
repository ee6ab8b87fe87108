//nolint:thelper // a check is a test: a failure names its own line
package handlertest

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// faults: each failure is classified as the Harness says, and leaves the handler able to go on.
func (s *suite) faults(t *testing.T) {
	for _, f := range s.Faults {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			a := s.attempts(t, f.Peer)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for range 2 { // the second time on whatever the first has left behind
				_, err := a.deliver(t, ctx, a.request(t, payload.JSON("fault")))
				if err == nil {
					t.Fatal("is delivered")
				}
				e := handler.Classify(err)
				if e.Category != f.Category || e.WillRetry() != f.WillRetry ||
					(e.Verdict == handler.Disable) != f.Disables ||
					e.StatusCode != f.StatusCode {
					t.Errorf("category %s, status %d, retry %t, disables %t; want %s, %d, %t, %t: %v",
						e.Category, e.StatusCode, e.WillRetry(), e.Verdict == handler.Disable,
						f.Category, f.StatusCode, f.WillRetry, f.Disables, err)
				}
			}
		})
	}
}

// cancelledBefore: an attempt that begins after its end returns at once.
func (s *suite) cancelledBefore(t *testing.T) {
	a := s.attempts(t, s.Peer)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(handler.ErrLeaseLost)
	req := a.request(t, payload.JSON("late"))
	err := s.promptly(t, ctx, func() error {
		_, err := a.deliver(t, ctx, req)
		return err
	})
	if err == nil && len(a.peer.Received(req)) == 0 {
		t.Error("says delivered, but the other side has nothing")
	}
}

// hanging: an attempt ends when its context does, whoever it waits for.
func (s *suite) hanging(t *testing.T) {
	if s.Local {
		return
	}
	a := s.attempts(t, s.Hanging)
	for _, n := range []int64{100, s.sizes()[len(s.sizes())-1]} {
		content := payload.Bytes("hanging.bin", random(n, 6))

		req := a.request(t, content)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err := s.promptly(t, ctx, func() error {
			_, err := a.deliver(t, ctx, req)
			return err
		})
		cancel()
		if err == nil {
			t.Fatal("is delivered to another side that does not answer")
		}
		if e := handler.Classify(err); e.Category != handler.Timeout {
			t.Errorf("after the attempt's timeout: a %s failure, want timeout: %v", e.Category, err)
		}

		req = a.request(t, content)
		lost, lose := context.WithCancelCause(t.Context())
		timer := time.AfterFunc(100*time.Millisecond, func() { lose(handler.ErrLeaseLost) })
		err = s.promptly(t, lost, func() error {
			_, err := a.deliver(t, lost, req)
			return err
		})
		timer.Stop()
		lose(nil)
		if err == nil {
			t.Error("is delivered to another side that does not answer")
		} else if !handler.Classify(err).WillRetry() {
			t.Errorf("a lost lease makes a permanent failure: %v", err)
		}
	}
}

// promptly fails the test if deliver goes on for too long after ctx has ended.
func (s *suite) promptly(t *testing.T, ctx context.Context, deliver func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- deliver() }()
	<-ctx.Done()
	timer := time.NewTimer(s.Patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		t.Fatalf("the attempt goes on %s after its context has ended", s.Patience)
		return nil
	}
}

// tester: a connection test finds a working peer in order, and reports of each faulty one without
// an error.
func (s *suite) tester(t *testing.T) {
	if s.Untestable {
		return
	}
	test := func(t *testing.T, start func(testing.TB) Peer) *destination.TestReport {
		t.Helper()
		h := s.handler(t, t.Output())
		p := s.peer(t, start)
		parsed, _ := Parse(t, h, p.Config)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tester, ok := handler.As[handler.Tester](h)
		if !ok {
			t.Fatal("is no Tester") // complete has checked
		}
		report, err := tester.Test(ctx, &handler.TestRequest{Organization: "handlertest", Config: parsed})
		if err != nil {
			t.Fatalf("Test: %v", err)
		}
		b, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		search(t, "the report", string(b), p.Secrets)
		if len(report.Steps) == 0 {
			t.Error("the report has no steps")
		}
		for _, step := range report.Steps {
			if step.Name == "" || !step.OK && step.Finding == "" {
				t.Errorf("a step without a name or, failed, without a finding: %+v", step)
			}
			if !step.OK && report.OK {
				t.Errorf("the report is OK though %s failed", step.Name)
			}
		}
		return report
	}
	t.Run("working", func(t *testing.T) {
		t.Parallel()
		if report := test(t, s.Peer); !report.OK {
			t.Errorf("a working peer fails the test: %+v", report.Steps)
		}
	})
	for _, f := range s.Faults {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			test(t, f.Peer)
		})
	}
}
