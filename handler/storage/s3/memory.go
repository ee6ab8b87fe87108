package s3

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// memory bounds what is held of payloads. It keeps buffers of the usual part's size for the next part for as long as any
// is in use: made anew for each, they would be garbage of several times their number.
type memory struct {
	size int64
	free *semaphore.Weighted

	mu    sync.Mutex
	inUse int
	kept  [][]byte
}

func newMemory(size int64) *memory { return &memory{size: size, free: semaphore.NewWeighted(size)} }

// get waits for a buffer of n bytes. release is to be called once.
func (m *memory) get(ctx context.Context, n int64) (b []byte, release func(), err error) {
	weight := min(n, m.size)
	if err := m.free.Acquire(ctx, weight); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	if n <= defaultPart/8 || n > defaultPart {
		return make([]byte, n), func() { m.free.Release(weight) }, nil
	}
	b = m.take()
	return b[:n], func() {
		m.put(b)
		m.free.Release(weight)
	}, nil
}

func (m *memory) take() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inUse++
	if last := len(m.kept) - 1; last >= 0 {
		b := m.kept[last]
		m.kept[last] = nil
		m.kept = m.kept[:last]
		return b
	}
	return make([]byte, defaultPart)
}

func (m *memory) put(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inUse--
	m.kept = append(m.kept, b)
	if m.inUse == 0 {
		m.kept = nil
	}
}
