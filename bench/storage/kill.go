package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"sync/atomic"
)

// counter stands before the server, and counts the bytes of parts.
type counter struct {
	*httptest.Server
	received, confirmed atomic.Int64
	at                  int64 // how many confirmed bytes close reached
	reached             chan struct{}
}

func newCounter(target string, at int64) (*counter, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	c := &counter{at: at, reached: make(chan struct{})}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host // it is signed
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }}
	proxy.ModifyResponse = func(r *http.Response) error {
		if part(r.Request) && r.StatusCode == http.StatusOK {
			size := r.Request.ContentLength
			if sum := c.confirmed.Add(size); sum >= c.at && sum-size < c.at {
				close(c.reached)
			}
		}
		return nil
	}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if part(r) {
			r.Body = counted{r.Body, &c.received}
		}
		proxy.ServeHTTP(w, r)
	}))
	return c, nil
}

func part(r *http.Request) bool { return r.Method == http.MethodPut && r.URL.Query().Has("partNumber") }

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// kill ends a process when 60 % of its upload are there, and counts what the next one sends.
func (b *bench) kill(ctx context.Context) (err error) {
	c, err := newCounter(b.server.url, b.resume*6/10)
	if err != nil {
		return err
	}
	defer c.Close()
	j := job{Kind: "ref", Endpoint: c.URL, File: b.file, Concurrency: 4}
	if j.Database, err = os.MkdirTemp(b.dir, "db-"); err != nil {
		return err
	}
	defer os.RemoveAll(j.Database)
	if j.Bucket, err = b.server.newBucket(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.drop(ctx, j.Bucket)) }()
	cmd := command(ctx, j)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-c.reached:
	case err := <-ended:
		return fmt.Errorf("the process has ended before it was killed: %w", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	if err := <-ended; err == nil {
		return errors.New("the process ended by itself before it was killed")
	}
	confirmed, received := c.confirmed.Load(), c.received.Swap(0)
	if _, err := command(ctx, j.of("resume")).Output(); err != nil {
		return failure(err)
	}
	sent := c.received.Load()
	percent := func(n int64) float64 { return 100 * float64(n) / float64(b.resume) }
	fmt.Printf("\nkilled at %.1f %% of %d MiB, with %d MiB in flight; the next process sent %d MiB, %.1f %% (in flight and missing: %.1f %%)\n",
		percent(confirmed), b.resume>>20, (received-confirmed)>>20, sent>>20, percent(sent), percent(b.resume-confirmed))
	return nil
}
