package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// waits is a case: how long it takes from the call of Deliver until the handler is called.
type waits struct {
	name string
	run  func(ctx context.Context, e *env) ([]time.Duration, error)
	long bool
}

func latencies(n int) []waits {
	return []waits{
		{"light load, same process", lightLoad, false}, {"light load, another process", otherProcess, false},
		{fmt.Sprintf("one beside a lane of %d", n), beside(n), false},
		{"one beside a lane of 1000000", beside(1_000_000), true},
		{"500/s, first 30 s", steady(30*time.Second, 0), false},
		{"500/s, snapshot of 1 min", steady(30*time.Second, time.Minute), false},
		{"500/s, snapshot of 10 min", steady(30*time.Second, 10*time.Minute), true},
	}
}

// arrivals notes when the handler was called for each topic, which is a number.
type arrivals struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (a *arrivals) note(topic string, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at[topic] = at
}

// since waits for all that were sent, and returns how long each took.
func (a *arrivals) since(ctx context.Context, sent []time.Time) ([]time.Duration, error) {
	for {
		a.mu.Lock()
		arrived := len(a.at)
		a.mu.Unlock()
		if arrived >= len(sent) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	took := make([]time.Duration, len(sent))
	for i, at := range sent {
		took[i] = a.at[strconv.Itoa(i)].Sub(at)
	}
	return took, nil
}

func (a *arrivals) option() delivery.Option {
	return delivery.WithHandler("timed", handler.Func(func(_ context.Context, r *handler.Request, _ none) (*handler.Result, error) {
		a.note(r.Topic, time.Now())
		return nil, nil
	}))
}

// send delivers to the last destination every so often, for a time.
func (h *host) send(ctx context.Context, every, during time.Duration) (sent []time.Time, err error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for begun := time.Now(); time.Since(begun) < during; {
		<-tick.C
		req := h.request(len(h.ids) - 1)
		req.Topic = strconv.Itoa(len(sent))
		sent = append(sent, time.Now())
		if _, err := h.org.Deliver(ctx, req); err != nil {
			return nil, err
		}
	}
	return sent, nil
}

// running runs f beside the service's loop.
func (h *host) running(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	loop := make(chan error, 1)
	go func() { loop <- h.svc.Run(ctx) }()
	err := f()
	cancel()
	return errors.Join(err, <-loop)
}

// timedHost has so many no-op lanes, and then one whose arrivals are noted.
func timedHost(ctx context.Context, e *env, lanes int) (*host, *arrivals, error) {
	a := &arrivals{at: map[string]time.Time{}}
	h, err := newHost(ctx, e, timed, lanes, few, a.option())
	if err != nil {
		return nil, nil, err
	}
	return h, a, h.add(ctx, destination.Spec{Label: "timed", Config: destination.As("timed", none{})})
}

func lightLoad(ctx context.Context, e *env) (took []time.Duration, err error) {
	h, a, err := timedHost(ctx, e, 0)
	if err != nil {
		return nil, err
	}
	err = h.running(ctx, func() error {
		sent, err := h.send(ctx, 20*time.Millisecond, 10*time.Second)
		if err == nil {
			took, err = a.since(ctx, sent)
		}
		return err
	})
	return took, errors.Join(err, h.close())
}

func otherProcess(ctx context.Context, e *env) ([]time.Duration, error) {
	h, err := newHost(ctx, e, "postgres", 1, few)
	if err != nil {
		return nil, err
	}
	worker, err := start(ctx, "worker", "postgres", e.url)
	if err != nil {
		return nil, err
	}
	if _, err := worker.line(); err != nil {
		return nil, err
	}
	sent, err := h.send(ctx, 37*time.Millisecond, 15*time.Second) // in no step with its polling
	took := make([]time.Duration, len(sent))
	for range sent {
		line, err := worker.line()
		if err != nil {
			return nil, err
		}
		topic, nano, _ := strings.Cut(line, " ")
		i, err1 := strconv.Atoi(topic)
		at, err2 := strconv.ParseInt(nano, 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		took[i] = time.Unix(0, at).Sub(sent[i])
	}
	return took, errors.Join(err, worker.stop(), h.close())
}

// beside delivers one at a time to a destination, while another has n items.
func beside(n int) func(ctx context.Context, e *env) ([]time.Duration, error) {
	return func(ctx context.Context, e *env) (took []time.Duration, err error) {
		h, a, err := timedHost(ctx, e, 1)
		if err != nil {
			return nil, err
		}
		all := h.ids
		h.ids = all[:1]
		if err := h.fill(ctx, n); err != nil {
			return nil, err
		}
		h.ids = all[1:]
		err = h.running(ctx, func() error {
			var sent []time.Time
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for i := 0; h.done.Load() < int64(n)*9/10; i++ { // while there is a backlog
				<-tick.C
				req := h.request(0)
				req.Topic = strconv.Itoa(i)
				sent = append(sent, time.Now())
				if _, err := h.org.Deliver(ctx, req); err != nil {
					return err
				}
			}
			took, err = a.since(ctx, sent)
			return err
		})
		return took, errors.Join(err, h.close())
	}
}

// steady delivers 500 a second. A snapshot is held open for a time before those that are measured,
// and while they are.
func steady(during, held time.Duration) func(ctx context.Context, e *env) ([]time.Duration, error) {
	return func(ctx context.Context, e *env) (took []time.Duration, err error) {
		h, a, err := timedHost(ctx, e, 0)
		if err != nil {
			return nil, err
		}
		if held > 0 {
			conn, err := h.db.Conn(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			for _, stmt := range []string{"begin isolation level repeatable read", "select count(*) from delivery_queue"} {
				if _, err := conn.ExecContext(ctx, stmt); err != nil {
					return nil, err
				}
			}
		}
		defer time.AfterFunc(held, e.claims.forget).Stop()
		err = h.running(ctx, func() error {
			sent, err := h.send(ctx, 2*time.Millisecond, held+during)
			if err != nil {
				return err
			}
			all, err := a.since(ctx, sent)
			if err != nil {
				return err
			}
			from := sent[0].Add(held)
			for i, at := range sent {
				if !at.Before(from) {
					took = append(took, all[i])
				}
			}
			return nil
		})
		return took, errors.Join(err, h.close())
	}
}

// printSeries prints a table.
func printSeries(title string, all []series) {
	if len(all) == 0 {
		return
	}
	fmt.Printf("\n| %-48s | %8s | %8s | %8s | %8s |\n|%s|%s\n", title, "number", "p50", "p99", "most",
		strings.Repeat("-", 50), strings.Repeat(strings.Repeat("-", 9)+":|", 4))
	for _, s := range all {
		slices.Sort(s.took)
		at := func(p float64) float64 {
			return s.took[min(len(s.took)-1, int(p*float64(len(s.took))))].Seconds() * 1000
		}
		fmt.Printf("| %-48s | %8d | %8.1f | %8.1f | %8.1f |\n", s.name, len(s.took), at(0.5), at(0.99), at(1))
	}
}
