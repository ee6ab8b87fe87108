// Package storetest is the conformance suite that every [payload.Store] must pass. It imports only
// the standard library and package payload.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery/payload"
)

// Run runs the suite on a store, which may already hold other things. Each check is a subtest.
func Run(t *testing.T, s payload.Store) {
	t.Helper()
	for name, check := range map[string]func(*testing.T, payload.Store){
		"contents": contents, "broken content": broken, "missing": missing, "delete": remove,
		"list": list, "concurrent": concurrent, "cancelled": cancelled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check(t, s)
		})
	}
}

func key(name string) string { return "storetest/" + name + "/0199c1b2-7d1e-7000-8000-0123456789ab" }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(b) // never fails
	return b
}

func read(t *testing.T, s payload.Store, key string, offset int64) ([]byte, error) {
	t.Helper()
	r, err := s.Open(t.Context(), key, offset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// contents checks that stored content is read back unchanged, from any offset.
func contents(t *testing.T, s payload.Store) {
	for i, n := range []int{1, 1000, 1 << 20, 1<<20 + 1, 9<<20 + 3} {
		k := key("contents") + string(rune('a'+i))
		sent := random(n)
		if err := s.Put(t.Context(), k, bytes.NewReader(sent)); err != nil {
			t.Errorf("%d bytes: %v", n, err)
			continue
		}
		for _, offset := range []int{0, n / 2, n - 1} {
			if got, err := read(t, s, k, int64(offset)); err != nil || !bytes.Equal(got, sent[offset:]) {
				t.Errorf("read %d of %d bytes from offset %d: %v", len(got), n, offset, err)
			}
		}
		if err := s.Delete(t.Context(), k); err != nil {
			t.Error(err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// broken checks that nothing is stored if the reader fails, however much it has read.
func broken(t *testing.T, s payload.Store) {
	cause := errors.New("storetest: the content is broken")
	for i, n := range []int{0, 100, 2 << 20, 9 << 20} {
		k := key("broken") + string(rune('a'+i))
		err := s.Put(t.Context(), k, io.MultiReader(bytes.NewReader(random(n)), failing{cause}))
		if !errors.Is(err, cause) {
			t.Errorf("after %d bytes: %v", n, err)
		}
		if got, err := read(t, s, k, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d bytes of broken content are stored: %v", len(got), err)
		}
	}
}

func missing(t *testing.T, s payload.Store) {
	if _, err := read(t, s, key("missing"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing key: %v, want fs.ErrNotExist", err)
	}
}

func remove(t *testing.T, s payload.Store) {
	a, b := key("delete")+"a", key("delete")+"b"
	for _, k := range []string{a, b} {
		if err := s.Put(t.Context(), k, bytes.NewReader(random(10))); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.Delete(t.Context(), a, key("delete")+"never", b); err != nil {
			t.Error(err)
		}
	}
	for _, k := range []string{a, b} {
		if _, err := read(t, s, k, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a deleted key: %v, want fs.ErrNotExist", err)
		}
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// list checks that List goes by age, and stops when yield returns an error.
func list(t *testing.T, s payload.Store) {
	var want []string
	for i := range 3 {
		k := key("list") + string(rune('a'+i))
		if err := s.Put(t.Context(), k, bytes.NewReader(random(10))); err != nil {
			t.Fatal(err)
		}
		want = append(want, k)
	}
	listed := func(age time.Duration) (all []string) {
		if err := s.List(t.Context(), age, func(k string) error {
			if slices.Contains(want, k) {
				all = append(all, k)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		slices.Sort(all)
		return all
	}
	if got := listed(-time.Hour); !slices.Equal(got, want) { // clocks may differ
		t.Errorf("listed %q, want %q", got, want)
	}
	if got := listed(24 * time.Hour); len(got) != 0 {
		t.Errorf("%q are listed as older than a day", got)
	}
	stop := errors.New("storetest: stop")
	if err := s.List(t.Context(), -time.Hour, func(string) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("List returned %v, want the error of yield", err)
	}
	if err := s.Delete(t.Context(), want...); err != nil {
		t.Error(err)
	}
}

func concurrent(t *testing.T, s payload.Store) {
	sent := random(3 << 20)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			k := key("concurrent") + string(rune('a'+i))
			if err := s.Put(t.Context(), k, bytes.NewReader(sent)); err != nil {
				t.Error(err)
				return
			}
			if got, err := read(t, s, k, 0); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes: %v", len(got), err)
			}
			if err := s.Delete(t.Context(), k); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func cancelled(t *testing.T, s payload.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, key("cancelled"), bytes.NewReader(random(2<<20))); err == nil {
		t.Error("Put stores although its context has ended")
	}
	if _, err := read(t, s, key("cancelled"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a cancelled Put has left something: %v", err)
	}
}
