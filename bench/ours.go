package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

const (
	workers  = 2000 // as River's own benchmark has
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

func newHost(ctx context.Context, e *env, driver string, lanes int) (*host, error) {
	h := &host{}
	var err error
	if h.db, err = e.open(driver); err != nil {
		return nil, err
	}
	h.svc, err = delivery.New(h.db, delivery.WithWorkers(workers), delivery.WithLogger(quiet),
		delivery.WithHandler("none", handler.Func(func(context.Context, *handler.Request, none) (*handler.Result, error) {
			h.done.Add(1)
			return nil, nil
		})))
	if err != nil {
		return nil, err
	}
	if err := h.svc.Migrate(ctx); err != nil {
		return nil, err
	}
	h.org = h.svc.Org("acme")
	for i := range lanes {
		d, err := h.org.Destinations().Create(ctx, destination.Spec{Label: fmt.Sprint(i), Config: none{}})
		if err != nil {
			return nil, err
		}
		h.ids = append(h.ids, d.ID)
	}
	return h, nil
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
func oursWork(driver string, n, lanes int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, driver, lanes)
		if err != nil {
			return result{}, err
		}
		if err := h.fill(ctx, n); err != nil {
			return result{}, err
		}
		r, err := e.timed(n, func() error {
			pass, err := h.svc.ProcessDue(ctx)
			if err == nil && pass.Delivered != n {
				err = fmt.Errorf("%d of %d items were delivered", pass.Delivered, n)
			}
			return err
		})
		return r, errors.Join(err, h.close())
	}
}

func oursInsertMany(driver string, n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, driver, 100)
		if err != nil {
			return result{}, err
		}
		r, err := e.timed(n, func() error { return h.fill(ctx, n) })
		return r, errors.Join(err, h.close())
	}
}

func oursInsert(driver string, n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		h, err := newHost(ctx, e, driver, 100)
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
