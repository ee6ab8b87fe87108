package deliverytest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/payload"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// recorder stands in for the test of a host, and keeps what becomes of it.
type recorder struct {
	testing.TB // of the test around it; its methods that are not below are not to be called

	mu       sync.Mutex
	failed   bool
	log      bytes.Buffer
	cleanups []func()
}

func (r *recorder) Helper() {}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

func (r *recorder) Output() io.Writer { return r }

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Errorf(format string, args ...any) {
	_, _ = fmt.Fprintf(r, format+"\n", args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// fails runs a host's test that must fail, and returns what it said.
func fails(t *testing.T, test func(t *recorder)) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for i := len(r.cleanups) - 1; i >= 0; i-- {
				r.cleanups[i]()
			}
		}()
		test(r)
	}()
	<-done
	if !r.failed {
		t.Error("the test did not fail")
	}
	return r.text()
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

// deliver has acme deliver text.
func deliver(t *testing.T, svc *delivery.DeliveryService, text string) *delivery.Receipt {
	t.Helper()
	return request(t, svc, delivery.Request{Topic: "report.finished", Payload: payload.Bytes("report.txt", []byte(text))})
}

func request(t *testing.T, svc *delivery.DeliveryService, req delivery.Request) *delivery.Receipt {
	t.Helper()
	receipt, err := svc.Org("acme").Deliver(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

func status(t *testing.T, svc *delivery.DeliveryService, id string) *delivery.Status {
	t.Helper()
	s, err := svc.Org("acme").Status(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
