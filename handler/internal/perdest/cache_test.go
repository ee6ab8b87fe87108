package perdest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/deliverykit/delivery/handler/internal/perdest"
)

// dropped remembers what a cache has dropped, in order.
type dropped struct {
	mu  sync.Mutex
	all []string
}

func (d *dropped) drop(v string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, v)
}

func (d *dropped) want(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.all, want) {
		t.Errorf("dropped %q, want %q", d.all, want)
	}
}

func TestOneIsEvicted(t *testing.T) {
	t.Parallel()
	var gone dropped
	c := perdest.New(2, gone.drop)
	built := 0
	for _, step := range []struct{ id, config, want string }{
		{"1", "x", "1/x/a"}, {"1", "x", "1/x/a"}, {"2", "x", "2/x/b"}, {"1", "x", "1/x/a"},
		{"3", "x", "3/x/c"}, // 2 was used least recently
		{"1", "x", "1/x/a"}, {"2", "x", "2/x/d"}, {"1", "y", "1/y/e"}, {"", "x", "/x/f"}, {"", "x", "/x/g"},
	} {
		got, release, err := c.Get(t.Context(), step.id, perdest.Fingerprint(step.config), func() (string, error) {
			built++
			return fmt.Sprintf("%s/%s/%c", step.id, step.config, 'a'+built-1), nil
		})
		if err != nil || got != step.want {
			t.Errorf("%s with %s: %s, %v, want %s", step.id, step.config, got, err, step.want)
		}
		release()
	}
	c.Forget("2")
	c.Forget("2")
	gone.want(t, "2/x/b", "3/x/c", "1/x/a", "/x/f", "/x/g", "2/x/d")
	c.Close()
	gone.want(t, "2/x/b", "3/x/c", "1/x/a", "/x/f", "/x/g", "2/x/d", "1/y/e")
}

func TestInUseIsNotDropped(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]func(*perdest.Cache[string]){
		"forgotten": func(c *perdest.Cache[string]) { c.Forget("1") },
		"closed":    func(c *perdest.Cache[string]) { c.Close() },
		"evicted":   func(c *perdest.Cache[string]) { get(t, c, "2", "v", "two")() },
		"changed":   func(c *perdest.Cache[string]) { get(t, c, "1", "w", "new")() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var gone dropped
			c := perdest.New(1, gone.drop)
			first, second := get(t, c, "1", "v", "one"), get(t, c, "1", "v", "another")
			remove(c)
			first()
			gone.want(t)
			second()
			gone.want(t, "one")
		})
	}
}

func get(t *testing.T, c *perdest.Cache[string], id, version, value string) (release func()) {
	t.Helper()
	_, release, err := c.Get(t.Context(), id, version, func() (string, error) { return value, nil })
	if err != nil {
		t.Fatal(err)
	}
	return release
}

func TestClosedKeepsNothing(t *testing.T) {
	t.Parallel()
	var gone dropped
	c := perdest.New(8, gone.drop)
	c.Close()
	get(t, c, "1", "v", "one")()
	gone.want(t, "one")
}

// Of several who come for one value, one builds it: the others share its result, wait no longer
// than their own ctx, and build it themselves where the first was cancelled or has panicked.
// Another destination does not wait for it.
func TestOneConstruction(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		finish func(cancel func()) (string, error)
		want   string
		err    error
	}{
		"built":     {func(func()) (string, error) { return "first", nil }, "first", nil},
		"failed":    {func(func()) (string, error) { return "", broken }, "", broken},
		"cancelled": {func(cancel func()) (string, error) { cancel(); return "", context.Canceled }, "second", nil},
		"panicked":  {func(func()) (string, error) { panic("build") }, "second", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := perdest.New[string](8, nil)
				under, cancel := context.WithCancel(t.Context())
				defer cancel()
				proceed := make(chan struct{})
				go func() {
					defer func() { _ = recover() }()
					_, _, _ = c.Get(under, "1", "v", func() (string, error) { //nolint:dogsled // what came of it is seen by the others
						<-proceed
						return test.finish(cancel)
					})
				}()
				synctest.Wait()
				impatient, give := context.WithCancelCause(t.Context())
				gave := errors.New("gave up")
				give(gave)
				if _, _, err := c.Get(impatient, "1", "v", nil); !errors.Is(err, gave) {
					t.Errorf("with a ctx that has ended: %v", err)
				}
				get(t, c, "2", "v", "two")()
				go func() {
					got, release, err := c.Get(t.Context(), "1", "v", func() (string, error) { return "second", nil })
					if got != test.want || !errors.Is(err, test.err) {
						t.Errorf("%q, %v, want %q, %v", got, err, test.want, test.err)
					}
					if err == nil {
						release()
					}
				}()
				synctest.Wait()
				close(proceed)
				synctest.Wait()
			})
		})
	}
}

// A value that is forgotten while it is built is its builder's alone.
func TestForgottenUnderConstruction(t *testing.T) {
	t.Parallel()
	var gone dropped
	c := perdest.New(8, gone.drop)
	_, release, err := c.Get(t.Context(), "1", "v", func() (string, error) {
		c.Forget("1")
		return "one", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	gone.want(t)
	release()
	gone.want(t, "one")
}

// Whatever many goroutines do, no value is dropped in use, and each is dropped exactly once. Run it
// with -race.
func TestManyGoroutines(t *testing.T) {
	t.Parallel()
	type value struct{ users, drops atomic.Int32 }
	var mu sync.Mutex
	var all []*value
	c := perdest.New(4, func(v *value) {
		if v.users.Load() != 0 {
			t.Error("dropped in use")
		}
		v.drops.Add(1)
	})
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := range 500 {
				id := fmt.Sprint((worker*7 + i) % 9)
				v, release, err := c.Get(t.Context(), id, fmt.Sprint(i%3), func() (*value, error) {
					v := &value{}
					mu.Lock()
					defer mu.Unlock()
					all = append(all, v)
					return v, nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				v.users.Add(1)
				if v.drops.Load() != 0 {
					t.Error("handed out after it was dropped")
				}
				if i%50 == 0 {
					c.Forget(id)
				}
				v.users.Add(-1)
				release()
			}
		})
	}
	group.Wait()
	c.Close()
	for _, v := range all {
		if n := v.drops.Load(); n != 1 {
			t.Errorf("dropped %d times", n)
		}
	}
}
