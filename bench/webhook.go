package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/webhook"
)

const connections = 256

// bareLoop posts n times to a receiver in another process, with nothing but net/http.
func bareLoop(n int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		receiver, err := start(ctx, "receiver")
		if err != nil {
			return result{}, err
		}
		url, err := receiver.line()
		if err != nil {
			return result{}, err
		}
		transport := &http.Transport{MaxIdleConnsPerHost: connections}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		r, err := e.timed(n, func() error {
			var next atomic.Int64
			var wg sync.WaitGroup
			errs := make(chan error, connections)
			for range connections {
				wg.Go(func() {
					for next.Add(1) <= int64(n) {
						if err := post(ctx, client, url); err != nil {
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
		return r, errors.Join(err, receiver.stop())
	}
}

func post(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the receiver answered %s", resp.Status)
	}
	return err
}

// webhooks delivers n signed webhooks in so many lanes to a receiver in another process.
func webhooks(driver string, n, lanes int) measure {
	return func(ctx context.Context, e *env) (result, error) {
		receiver, err := start(ctx, "receiver")
		if err != nil {
			return result{}, err
		}
		url, err := receiver.line()
		if err != nil {
			return result{}, err
		}
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		h, err := newHost(ctx, e, driver, 0, connections, delivery.WithHandler("webhook", webhook.New()),
			delivery.WithKeys(delivery.LocalKey("bench", hex.EncodeToString(key))), delivery.WithNetwork(delivery.Network{Loopback: true}))
		if err != nil {
			return result{}, err
		}
		for i := range lanes {
			if err := h.add(ctx, destination.Spec{Label: fmt.Sprint(i), Config: webhook.Config{URL: url}}); err != nil {
				return result{}, err
			}
		}
		r, err := h.drain(ctx, e, n)
		return r, errors.Join(err, h.close(), receiver.stop())
	}
}
