package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type args struct {
	Body []byte `json:"body"`
}

func (args) Kind() string { return "none" }

type worker struct {
	river.WorkerDefaults[args]
	done *atomic.Int64
}

func (w *worker) Work(context.Context, *river.Job[args]) error {
	w.done.Add(1)
	return nil
}

type peer struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
	done   atomic.Int64
}

func newPeer(ctx context.Context, e *env) (*peer, error) {
	config, err := pgxpool.ParseConfig(e.url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 20
	p := &peer{}
	if p.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	driver := riverpgxv5.New(p.pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quiet})
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, err
	}
	all := river.NewWorkers()
	river.AddWorker(all, &worker{done: &p.done})
	p.client, err = river.NewClient(driver, &river.Config{
		FetchCooldown: 2 * time.Millisecond, FetchPollInterval: 20 * time.Millisecond, Logger: quiet,
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}, Workers: all,
	})
	return p, err
}

func (p *peer) fill(ctx context.Context, n int) error {
	for i := 0; i < n; {
		params := make([]river.InsertManyParams, 0, batch)
		for range min(batch, n-i) {
			params = append(params, river.InsertManyParams{Args: args{body}})
			i++
		}
		if _, err := p.client.InsertManyFast(ctx, params); err != nil {
			return err
		}
	}
	return nil
}

func riverWork(n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		p, err := newPeer(ctx, e)
		if err != nil {
			return result{}, err
		}
		defer p.pool.Close()
		if err := p.fill(ctx, n); err != nil {
			return result{}, err
		}
		return e.timed(n, func() error {
			if err := p.client.Start(ctx); err != nil {
				return err
			}
			for p.done.Load() < int64(n) {
				time.Sleep(time.Millisecond) //nolint:forbidigo // River tells of completions by events that cost it time
			}
			return p.client.Stop(ctx) // returns when all completions are in the database
		})
	}
}

func riverInsertMany(n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		p, err := newPeer(ctx, e)
		if err != nil {
			return result{}, err
		}
		defer p.pool.Close()
		return e.timed(n, func() error { return p.fill(ctx, n) })
	}
}

func riverInsert(n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		p, err := newPeer(ctx, e)
		if err != nil {
			return result{}, err
		}
		defer p.pool.Close()
		return e.fromEight(n, func(int) error {
			_, err := p.client.Insert(ctx, args{body}, nil)
			return err
		})
	}
}
