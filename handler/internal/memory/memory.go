// Package memory bounds what handlers hold of payloads in memory.
package memory

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Budget bounds what is held of payloads. While any memory is in use, it keeps buffers of the usual
// size for reuse: allocated anew for each part, they would be garbage of several times their
// number.
type Budget struct {
	size, usual int64
	free        *semaphore.Weighted

	mu    sync.Mutex
	inUse int
	kept  [][]byte
}

// New returns a budget of that many bytes, for parts that usually have that size.
func New(size, usual int64) *Budget {
	return &Budget{size: size, usual: usual, free: semaphore.NewWeighted(size)}
}

// Get waits for a buffer of n bytes. A buffer larger than the budget waits for all of it. The
// caller calls release once.
func (m *Budget) Get(ctx context.Context, n int64) (b []byte, release func(), err error) {
	weight := min(n, m.size)
	if err := m.free.Acquire(ctx, weight); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	if n <= m.usual/8 || n > m.usual {
		return make([]byte, n), func() { m.free.Release(weight) }, nil
	}
	b = m.take()
	return b[:n], func() {
		m.put(b)
		m.free.Release(weight)
	}, nil
}

func (m *Budget) take() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inUse++
	if last := len(m.kept) - 1; last >= 0 {
		b := m.kept[last]
		m.kept[last] = nil
		m.kept = m.kept[:last]
		return b
	}
	return make([]byte, m.usual)
}

func (m *Budget) put(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inUse--
	m.kept = append(m.kept, b)
	if m.inUse == 0 {
		m.kept = nil
	}
}
