// Package events passes events on to listeners in this process.
package events

import (
	"context"
	"sync"
	"time"

	"github.com/deliverykit/delivery/event"
)

// Bus passes events on. It may be used by many goroutines at once.
type Bus struct {
	now func() time.Time

	mu        sync.RWMutex
	closed    bool
	listeners map[*listener]struct{}
}

type listener struct {
	hear func(event.Event)
	end  func() // nil: nothing to do when the bus closes
}

// NewBus returns a Bus whose events happen at the time of a clock.
func NewBus(now func() time.Time) *Bus { return &Bus{now: now, listeners: map[*listener]struct{}{}} }

// Publish calls every listener with e, one after another. It sets Event.At.
func (b *Bus) Publish(e event.Event) {
	e.At = b.now().UTC()
	b.mu.RLock()
	defer b.mu.RUnlock()
	for l := range b.listeners {
		l.hear(e)
	}
}

// Listen has hear called with each event from now on, by several goroutines at once. hear must
// neither block nor call the bus. Once stop has returned hear is not called any more; stop may be
// called repeatedly.
func (b *Bus) Listen(hear func(event.Event)) (stop func()) {
	stop, _ = b.add(&listener{hear: hear})
	return stop
}

func (b *Bus) add(l *listener) (stop func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return func() {}, false
	}
	b.listeners[l] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, l)
	}, true
}

// Buffer is how many events a subscriber may be behind.
const Buffer = 256

// Subscribe returns the events that wanted selects, until ctx ends or the bus is closed; then the
// channel is closed. A subscriber that is Buffer events behind misses some, and Event.Missed of the
// next one says how many.
func (b *Bus) Subscribe(ctx context.Context, wanted func(event.Event) bool) <-chan event.Event {
	ch := make(chan event.Event, Buffer)
	var mu sync.Mutex
	missed, ended := 0, false
	l := &listener{
		hear: func(e event.Event) {
			if !wanted(e) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if ended {
				return
			}
			e.Missed = missed
			select {
			case ch <- e:
				missed = 0
			default:
				missed++
			}
		},
		end: func() {
			mu.Lock()
			defer mu.Unlock()
			if !ended {
				ended = true
				close(ch)
			}
		},
	}
	stop, ok := b.add(l)
	if !ok {
		l.end()
		return ch
	}
	context.AfterFunc(ctx, func() {
		stop()
		l.end()
	})
	return ch
}

// Close ends every subscription, now and later. Listeners stay.
func (b *Bus) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for l := range b.listeners {
		if l.end != nil {
			delete(b.listeners, l)
			l.end()
		}
	}
}
