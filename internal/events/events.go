// Package events tells listeners in this process what happens to destinations and items. What is told is a hint: the database is the
// truth, and other processes are not heard. It knows no sibling.
package events

import (
	"sync"
	"time"
)

// Event is something that happened. Kind is one of the names that delivery.EventKind lists.
type Event struct {
	Kind         string
	Organization string
	Destination  string // its id, where the event is about one
	Item         string // its id, where the event is about one
	Progress     int64  // bytes of the item that the other side has
	Version      int64  // that the destination then had, where it was changed by hand
	Reason       string // in plain words, for people; it holds no secret
	At           time.Time
}

// Bus passes events on. Its zero value is ready; it may be used by many goroutines at once.
type Bus struct {
	mu        sync.RWMutex
	listeners map[*listener]struct{}
}

type listener struct{ hear func(Event) }

// Publish calls every listener with e, one after another.
func (b *Bus) Publish(e Event) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for l := range b.listeners {
		l.hear(e)
	}
}

// Listen has hear called with each event from now on, by several goroutines at once. It must neither block nor call the
// bus. When stop has returned it is not called any more; stop may be called repeatedly.
func (b *Bus) Listen(hear func(Event)) (stop func()) {
	l := &listener{hear}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listeners == nil {
		b.listeners = map[*listener]struct{}{}
	}
	b.listeners[l] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, l)
	}
}
