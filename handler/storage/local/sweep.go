package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
)

const (
	// abandoned is how old a temporary file must be that nobody writes any more: an attempt takes
	// 24 h at most.
	abandoned = 25 * time.Hour
	// sweepEvery is how often a process looks through a folder that it writes to.
	sweepEvery = time.Hour
	// counted is how old a measure of what an organization has may be.
	counted = time.Minute
)

// walk visits what is below folder, and follows no link. in is the folder that the entry is in, by
// its last segment.
func walk(ctx context.Context, folder *os.Root, visit func(in *os.Root, name string, info fs.FileInfo) error) error {
	return walkBelow(ctx, folder, "", visit)
}

func walkBelow(
	ctx context.Context, folder *os.Root, prefix string, visit func(*os.Root, string, fs.FileInfo) error,
) error {
	return each(ctx, folder, func(entry fs.DirEntry) error {
		name := path.Join(prefix, entry.Name())
		info, err := folder.Lstat(entry.Name())
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return failed("look at "+quote(name), err)
		}
		if !info.IsDir() {
			return visit(folder, name, info)
		}
		below, err := step(folder, entry.Name(), false, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLink) {
			return nil // removed, or replaced by a link, in between
		}
		if err != nil {
			return err
		}
		defer below.Close()
		return walkBelow(ctx, below, name, visit)
	})
}

// each reads the entries of one folder, some at a time.
func each(ctx context.Context, folder *os.Root, visit func(fs.DirEntry) error) error {
	f, err := folder.Open(".")
	if err != nil {
		return failed("read a folder", err)
	}
	defer f.Close()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		entries, err := f.ReadDir(256)
		for _, entry := range entries {
			if err := visit(entry); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return failed("read a folder", err)
		}
	}
}

func isTemporary(name string) bool {
	return strings.HasPrefix(name, temporary) && strings.HasSuffix(name, ".tmp")
}

// Sweep implements storage.Sweeper. A temporary name does not tell of which object it was to be.
func (b *bucket) Sweep(ctx context.Context, age time.Duration, _ *storage.Template) (removed int, err error) {
	before := stampedBefore(age)
	root, err := b.handler.root()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	folder, err := descend(root, b.folder, false, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer folder.Close()
	err = walk(ctx, folder, func(in *os.Root, name string, info fs.FileInfo) error {
		if !info.Mode().IsRegular() || !isTemporary(path.Base(name)) || !info.ModTime().Before(before) {
			return nil
		}
		if err := in.Remove(path.Base(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed("remove "+quote(name), err)
		}
		removed++
		return nil
	})
	return removed, err
}

// stampedBefore is when a file of that age was last written, by the clock that files are stamped
// with: the handler's own clock need not agree with it.
func stampedBefore(age time.Duration) time.Time { return time.Now().Add(-age) }

// sweepFolder removes what is stale in one folder, at most once an hour. It is on the way of a
// delivery, so it fails silently.
func (b *bucket) sweepFolder(ctx context.Context, folder *os.Root, where string) {
	h, now := b.handler, b.now()
	h.mu.Lock()
	due := now.Sub(h.swept[where]) >= sweepEvery
	if due {
		if len(h.swept) >= 10_000 { // folders by date come and go
			clear(h.swept)
		}
		h.swept[where] = now
	}
	h.mu.Unlock()
	if !due {
		return
	}
	_ = each(ctx, folder, func(entry fs.DirEntry) error {
		if !isTemporary(entry.Name()) {
			return nil
		}
		info, err := folder.Lstat(entry.Name())
		if err == nil && info.Mode().IsRegular() && info.ModTime().Before(stampedBefore(abandoned)) {
			_ = folder.Remove(entry.Name())
		}
		return nil
	})
}

// usage is what an organization has, and what is being written for it.
type usage struct {
	bytes, reserved int64
	at              time.Time
}

// reservation is room for one file.
type reservation struct {
	handler      *Handler
	organization string
	size         int64
}

func (h *Handler) reserve(b *bucket, size int64) (*reservation, error) {
	r := &reservation{handler: h, organization: b.organization}
	if h.quota == 0 {
		return r, nil
	}
	h.mu.Lock()
	u := h.used[b.organization]
	stale := u == nil || b.now().Sub(u.at) >= counted
	h.mu.Unlock()
	if stale {
		bytes, err := b.measure()
		if err != nil {
			return nil, err
		}
		h.mu.Lock()
		if u = h.used[b.organization]; u == nil {
			u = &usage{}
			h.used[b.organization] = u
		}
		u.bytes, u.at = bytes, b.now()
		h.mu.Unlock()
	}
	return r, r.grow(max(0, size))
}

// grow makes the reservation one of at least size bytes.
func (r *reservation) grow(size int64) error {
	h := r.handler
	if h.quota == 0 || size <= r.size {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	u := h.used[r.organization]
	if more := size - r.size; u.bytes+u.reserved+more > h.quota {
		return handler.Fail(handler.Capacity, fmt.Errorf(
			"local: the organization's quota is %d bytes, of which %d are used or being written, and this needs "+
				"%d more; make room, the item waits",
			h.quota, u.bytes+u.reserved, more,
		))
	}
	u.reserved += size - r.size
	r.size = size
	return nil
}

// keep counts what was written as used.
func (r *reservation) keep(size int64) {
	if r.handler.quota == 0 {
		return
	}
	r.handler.mu.Lock()
	defer r.handler.mu.Unlock()
	r.handler.used[r.organization].bytes += size
}

func (r *reservation) release() {
	if r.handler.quota == 0 {
		return
	}
	r.handler.mu.Lock()
	defer r.handler.mu.Unlock()
	r.handler.used[r.organization].reserved -= r.size
	r.size = 0
}

// measure counts what the organization has, but for temporary files: those of live attempts are
// reserved.
func (b *bucket) measure() (bytes int64, err error) {
	root, err := b.handler.root()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	folder, err := descend(root, []string{b.organization}, false, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer folder.Close()
	err = walk(context.Background(), folder, func(_ *os.Root, name string, info fs.FileInfo) error {
		if info.Mode().IsRegular() && !isTemporary(path.Base(name)) {
			bytes += info.Size()
		}
		return nil
	})
	return bytes, err
}
