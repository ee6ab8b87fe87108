package testkit

import (
	"sync"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/settings"
)

// Clock is a time that tests move. Its zero value is not usable.
type Clock struct {
	mu sync.Mutex
	at time.Time
}

// NewClock returns a Clock that shows a moment in 2030.
func NewClock() *Clock { return &Clock{at: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

// Now is the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// Advance moves the time on.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// Set moves the time to a moment.
func (c *Clock) Set(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

// Option has a service go by the clock.
func (c *Clock) Option() delivery.Option {
	return func(s *settings.Builder) error {
		s.Clock = c.Now
		return nil
	}
}
