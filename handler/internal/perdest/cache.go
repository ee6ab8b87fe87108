// Package perdest keeps what a handler makes once per destination: a client, an access token, a
// pool of connections.
package perdest

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/json"
	"sync"

	"github.com/deliverykit/delivery/destination"
)

// Cache keeps one value per destination, made for one version of the destination's config. It keeps
// a bounded number: when it is full, the value that was used least recently goes. It is safe for
// concurrent use.
type Cache[V any] struct {
	max  int
	drop func(V)

	mu     sync.Mutex
	by     map[string]*list.Element // by destination
	order  list.List                // of *entry[V], the last used first
	idle   []V                      // to be dropped by unlock
	closed bool
}

// entry is a value, or the construction of one. value and err may be read once done is closed; the
// lock of the cache guards made, users and gone.
type entry[V any] struct {
	destination, version string

	done  chan struct{} // closed when the construction has ended
	value V
	err   error // of the construction, unless the end of the builder's ctx explains it
	made  bool  // there is a value
	users int
	gone  bool // it is no longer in the cache
}

// New returns a cache for up to limit destinations. drop, which may be nil, is called once for each
// value that has left the cache, when nobody uses that value any more.
func New[V any](limit int, drop func(V)) *Cache[V] {
	if drop == nil {
		drop = func(V) {}
	}
	return &Cache[V]{max: limit, drop: drop, by: map[string]*list.Element{}}
}

// Fingerprint identifies a config, or a part of one, including its secrets. It serves as a version.
func Fingerprint(part any) string {
	raw, err := destination.Reveal(part)
	if err != nil {
		raw, _ = json.Marshal(part)
	}
	sum := sha256.Sum256(raw)
	return string(sum[:])
}

// Get returns the value of a destination and a version, and builds it where the cache has none or
// one of another version. Callers that come for the same value meanwhile wait for it and share the
// result, until their ctx ends. The value is not dropped before release is called, which has to
// happen exactly once unless there is an error. Without a destination or a version the value is the
// caller's alone, and is dropped on release.
func (c *Cache[V]) Get(
	ctx context.Context, id, version string, build func() (V, error),
) (value V, release func(), err error) {
	for {
		e, mine := c.enter(id, version)
		if mine {
			return c.build(ctx, e, build)
		}
		select {
		case <-e.done:
		case <-ctx.Done():
			return value, nil, context.Cause(ctx)
		}
		if c.hold(e) {
			return e.value, func() { c.release(e) }, nil
		}
		if e.err != nil {
			return value, nil, e.err
		}
		// The construction was given up, or its value went before this caller had it.
	}
}

// enter returns the entry to wait for, or a new one for the caller to build.
func (c *Cache[V]) enter(id, version string) (e *entry[V], mine bool) {
	c.mu.Lock()
	defer c.unlock()
	e = &entry[V]{destination: id, version: version, done: make(chan struct{})}
	if id == "" || version == "" || c.closed {
		e.gone = true
		return e, true
	}
	if at, ok := c.by[id]; ok {
		if known := entryAt[V](at); known.version == version {
			c.order.MoveToFront(at)
			return known, false
		}
		c.remove(at)
	}
	c.by[id] = c.order.PushFront(e)
	for c.order.Len() > c.max {
		c.remove(c.order.Back())
	}
	return e, true
}

// build makes the value of an entry. Those who wait go on also when build panics or ends its
// goroutine.
func (c *Cache[V]) build(ctx context.Context, e *entry[V], build func() (V, error)) (V, func(), error) {
	made := false
	defer func() {
		c.mu.Lock()
		defer c.unlock()
		if made {
			e.made, e.users = true, 1
		} else if at, ok := c.by[e.destination]; ok && entryAt[V](at) == e {
			c.remove(at)
		}
		close(e.done)
	}()
	value, err := build()
	if err != nil {
		if ctx.Err() == nil {
			e.err = err
		}
		return value, nil, err
	}
	e.value, made = value, true
	return value, func() { c.release(e) }, nil
}

// hold counts another user of a value, and reports whether there is one to use.
func (c *Cache[V]) hold(e *entry[V]) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !e.made || e.gone && e.users == 0 {
		return false
	}
	e.users++
	return true
}

func (c *Cache[V]) release(e *entry[V]) {
	c.mu.Lock()
	defer c.unlock()
	if e.users--; e.gone && e.users == 0 {
		c.idle = append(c.idle, e.value)
	}
}

// Forget removes the value of a destination.
func (c *Cache[V]) Forget(id string) {
	c.mu.Lock()
	defer c.unlock()
	if at, ok := c.by[id]; ok {
		c.remove(at)
	}
}

// Close removes all values. Afterwards the cache keeps nothing.
func (c *Cache[V]) Close() {
	c.mu.Lock()
	defer c.unlock()
	c.closed = true
	for c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
}

// remove takes an entry out of the cache. A value under construction is dropped by its users.
func (c *Cache[V]) remove(at *list.Element) {
	e := entryAt[V](at)
	c.order.Remove(at)
	delete(c.by, e.destination)
	e.gone = true
	if e.made && e.users == 0 {
		c.idle = append(c.idle, e.value)
	}
}

// unlock drops what nobody uses any more, without the lock: closing a connection may take long.
func (c *Cache[V]) unlock() {
	idle := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, v := range idle {
		c.drop(v)
	}
}

func entryAt[V any](at *list.Element) *entry[V] {
	e, _ := at.Value.(*entry[V]) // there is nothing else in the list
	return e
}
