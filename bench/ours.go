package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

const (
	workers  = 2000 // as River's own benchmark has
	few      = 64   // the library's default
	batch    = 1000 // requests of a DeliverMany, and jobs of an InsertManyFast
	bodySize = 256
)

type none struct{}

func (none) DestinationType() string { return "none" }

// host is a program that embeds the library.
type host struct {
	db   *sql.DB
	svc  *delivery.DeliveryService
	org  *delivery.Org
	ids  []string
	done atomic.Int64
}

func newHost(ctx context.Context, e *env, driver string, lanes, workers int, opts ...delivery.Option) (*host, error) {
	h := &host{}
	var err error
	if h.db, err = e.open(driver); err != nil {
		return nil, err
	}
	opts = append([]delivery.Option{
		delivery.WithLogger(quiet), delivery.WithWorkers(workers),
		delivery.WithHandler("none", handler.Func(func(context.Context, *handler.Request, none) (*handler.Result, error) {
			h.done.Add(1)
			return nil, nil
		})),
	}, opts...)
	h.svc, err = delivery.New(h.db, opts...)
	if err != nil {
		return nil, err
	}
	if err := h.svc.Migrate(ctx); err != nil {
		return nil, err
	}
	h.org = h.svc.Org("acme")
	for i := range lanes {
		if err := h.add(ctx, destination.Spec{Label: fmt.Sprint(i), Config: none{}}); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// add creates a destination.
func (h *host) add(ctx context.Context, spec destination.Spec) error {
	d, err := h.org.Destinations().Create(ctx, spec)
	if err == nil {
		h.ids = append(h.ids, d.ID)
	}
	return err
}

func (h *host) close() error {
	if err := h.svc.Close(); err != nil {
		return err
	}
	return h.db.Close()
}

var body = make([]byte, bodySize)

func (h *host) request(i int) delivery.Request {
	return delivery.Request{Payload: payload.Bytes("", body), Destinations: h.ids[i%len(h.ids) : i%len(h.ids)+1]}
}

func (h *host) fill(ctx context.Context, n int) error {
	for i := 0; i < n; {
		reqs := make([]delivery.Request, 0, batch)
		for range min(batch, n-i) {
			reqs = append(reqs, h.request(i))
			i++
		}
		if _, err := h.org.DeliverMany(ctx, reqs); err != nil {
			return err
		}
	}
	return nil
}

// oursWork is the rate at which n items in so many lanes are claimed, handled and finished.
func oursWork(driver string, n, lanes int, opts ...delivery.Option) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, driver, lanes, workers, opts...)
		if err != nil {
			return result{}, err
		}
		r, err := h.drain(ctx, e, n)
		return r, errors.Join(err, h.close())
	}
}

// oursBacklog is oursWork in 100 lanes, with the times of claims.
func oursBacklog(n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, timed, 100, workers)
		if err != nil {
			return result{}, err
		}
		r, err := h.drain(ctx, e, n)
		if r.claims = e.claims.took; err == nil && len(r.claims) == 0 {
			err = errors.New("no claim was noticed: has its statement changed?")
		}
		return r, errors.Join(err, h.close())
	}
}

// drain accepts n items, and measures how fast they are delivered.
func (h *host) drain(ctx context.Context, e *env, n int) (result, error) {
	if err := h.fill(ctx, n); err != nil {
		return result{}, err
	}
	return e.timed(n, func() error {
		pass, err := h.svc.ProcessDue(ctx)
		if err == nil && pass.Delivered != n {
			err = fmt.Errorf("%d of %d items were delivered", pass.Delivered, n)
		}
		return err
	})
}

// oursBeside is oursWork in 100 lanes, beside one whose handler never answers, if hanging.
func oursBeside(n int, hanging bool) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, "postgres", 100, few, delivery.WithShutdownTimeout(time.Millisecond),
			delivery.WithHandler("hangs", handler.Func(func(ctx context.Context, _ *handler.Request, _ none) (*handler.Result, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})))
		if err != nil {
			return result{}, err
		}
		good := h.ids
		if hanging {
			if err := h.add(ctx, destination.Spec{Label: "hangs", Config: destination.As("hangs", none{})}); err != nil {
				return result{}, err
			}
			h.ids = h.ids[len(good):]
			if err := h.fill(ctx, n/10); err != nil {
				return result{}, err
			}
		}
		h.ids = good
		if err := h.fill(ctx, n); err != nil {
			return result{}, err
		}
		var r result
		err = h.running(ctx, func() (err error) {
			r, err = e.timed(n, func() error {
				for h.done.Load() < int64(n) {
					select {
					case <-ctx.Done():
						return ctx.Err()
					case <-time.After(time.Millisecond):
					}
				}
				return nil
			})
			return err
		})
		return r, errors.Join(err, h.close())
	}
}

func oursInsertMany(driver string, n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, driver, 100, workers)
		if err != nil {
			return result{}, err
		}
		r, err := e.timed(n, func() error { return h.fill(ctx, n) })
		return r, errors.Join(err, h.close())
	}
}

func oursInsert(driver string, n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, driver, 100, workers)
		if err != nil {
			return result{}, err
		}
		r, err := e.fromEight(n, func(i int) error {
			_, err := h.org.Deliver(ctx, h.request(i))
			return err
		})
		return r, errors.Join(err, h.close())
	}
}

// fromEight calls f n times from 8 goroutines.
func (e *env) fromEight(n int, f func(i int) error) (result, error) {
	return e.timed(n, func() error {
		var wg sync.WaitGroup
		var next atomic.Int64
		errs := make(chan error, 8)
		for range 8 {
			wg.Go(func() {
				for i := next.Add(1); i <= int64(n); i = next.Add(1) {
					if err := f(int(i)); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		return <-errs
	})
}
