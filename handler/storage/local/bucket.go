package local

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// temporary begins the names of files that are being written.
const temporary = ".delivery-"

// chunk is how much is read and written at once: what stays in a processor's cache while it is
// hashed.
const chunk = 32 << 10

// bucket is a destination's folder.
type bucket struct {
	handler              *Handler
	now                  func() time.Time
	organization         string
	folder               []string // from the host's directory
	fileMode, folderMode fs.FileMode
}

var (
	_ storage.Bucket  = (*bucket)(nil)
	_ storage.Sweeper = (*bucket)(nil)
)

// open opens the folder that an object is in. The caller closes it.
func (b *bucket) open(name string, create bool) (folder *os.Root, base string, err error) {
	if err := storage.CheckName(name); err != nil {
		return nil, "", handler.Fail(handler.Configuration, fmt.Errorf("local: the name %w", err))
	}
	root, err := b.handler.root()
	if err != nil {
		return nil, "", err
	}
	defer root.Close()
	segments := append(append([]string(nil), b.folder...), strings.Split(name, "/")...)
	last := len(segments) - 1
	folder, err = descend(root, segments[:last], create, b.folderMode)
	return folder, segments[last], err
}

// Put implements storage.Bucket.
func (b *bucket) Put(ctx context.Context, up *storage.Upload) (storage.Object, error) {
	for range 10 {
		stored, err := b.put(ctx, up)
		if !errors.Is(err, errGone) {
			return stored, err
		}
	}
	return storage.Object{}, handler.Fail(handler.Remote, fmt.Errorf("local: the folder of %q comes and goes", up.Name))
}

// errGone says that the folder was removed, because it was empty, before the file was begun.
var errGone = errors.New("local: the folder is gone")

func (b *bucket) put(ctx context.Context, up *storage.Upload) (storage.Object, error) {
	room, err := b.handler.reserve(b, up.Size)
	if err != nil {
		return storage.Object{}, err
	}
	defer room.release()
	folder, base, err := b.open(up.Name, true)
	if err != nil {
		return storage.Object{}, err
	}
	defer folder.Close()
	if !up.Replace {
		if _, err := folder.Lstat(base); err == nil { // before anything is written
			return storage.Object{}, exists(up.Name)
		}
	}
	b.sweepFolder(ctx, folder, path.Join(append(b.folder, path.Dir(up.Name))...))

	name := temporary + strings.ToLower(rand.Text()) + ".tmp"
	f, err := folder.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return storage.Object{}, errGone
	}
	if err != nil {
		return storage.Object{}, failed("make a file in the folder of "+quote(up.Name), err)
	}
	published := false
	defer func() {
		_ = f.Close() // after an error; else it is closed already
		if !published {
			_ = folder.Remove(name)
		}
	}()
	size, sum, err := write(ctx, f, up, room)
	if err == nil {
		err = b.finish(f, up.Name)
	}
	if err != nil {
		return storage.Object{}, err
	}
	if ctx.Err() != nil {
		return storage.Object{}, context.Cause(ctx)
	}
	if err := publish(folder, name, base, up); err != nil {
		return storage.Object{}, err
	}
	published = true
	if err := flush(folder); err != nil {
		return storage.Object{}, err
	}
	room.keep(size)
	return b.object(up.Name, size, sum), nil
}

// finish makes a written file durable, and closes it.
func (b *bucket) finish(f *os.File, name string) error {
	if err := f.Chmod(b.fileMode); err != nil {
		return failed("set the mode of "+quote(name), err)
	}
	if err := f.Sync(); err != nil {
		return failed("flush "+quote(name), err)
	}
	if err := f.Close(); err != nil {
		return failed("close "+quote(name), err)
	}
	return nil
}

// write copies the content, and checks that it is what was accepted, before anyone can see it.
func write(ctx context.Context, f *os.File, up *storage.Upload, room *reservation) (size int64, sum string, err error) {
	content, err := up.Open(ctx, 0)
	if err != nil {
		return 0, "", err
	}
	defer content.Close()
	buffer := make([]byte, chunk)
	var h hash.Hash // nil where content checks it itself, or nobody asks for it
	if up.SHA256 == "" && !up.Transient {
		h = sha256.New()
	}
	for {
		if ctx.Err() != nil {
			return size, "", context.Cause(ctx)
		}
		n, end, err := storage.Fill(content, buffer)
		if n > 0 {
			if err := room.grow(size + int64(n)); err != nil {
				return size, "", err
			}
			if h != nil {
				h.Write(buffer[:n])
			}
			if _, err := f.Write(buffer[:n]); err != nil {
				return size, "", failed("write "+quote(up.Name), err)
			}
			size += int64(n)
			up.Progress(size)
		}
		if err != nil {
			return size, "", err
		}
		if end {
			break
		}
	}
	if sum = up.SHA256; h != nil {
		sum = hex.EncodeToString(h.Sum(nil))
	}
	return size, sum, check(f, up, size)
}

// check compares how much was written with what was accepted and what the file has.
func check(f *os.File, up *storage.Upload, size int64) error {
	if up.Size >= 0 && size != up.Size {
		return handler.Fail(handler.Internal, fmt.Errorf("local: %q: %w", up.Name, payload.ErrCorrupt))
	}
	info, err := f.Stat()
	if err != nil {
		return failed("look at "+quote(up.Name), err)
	}
	if info.Size() != size {
		return handler.Fail(handler.Internal,
			fmt.Errorf("local: %q: %d bytes were written, and the file has %d", up.Name, size, info.Size()))
	}
	return nil
}

// publish gives the temporary file its name.
func publish(folder *os.Root, name, base string, up *storage.Upload) error {
	if up.Replace {
		if err := folder.Rename(name, base); err != nil {
			return failed("rename "+quote(up.Name), err)
		}
		return nil
	}
	err := folder.Link(name, base)
	switch {
	case err == nil:
		_ = folder.Remove(name) // else it is swept
		return nil
	case errors.Is(err, fs.ErrExist):
		return exists(up.Name)
	case !noLinks(err):
		return failed("name "+quote(up.Name), err)
	}
	err = renameNoReplace(folder, name, base)
	switch {
	case errors.Is(err, fs.ErrExist):
		return exists(up.Name)
	case err != nil:
		return handler.Fail(handler.Configuration, fmt.Errorf(
			"local: cannot name %q: the file system has neither hard links nor a rename that replaces nothing; "+
				"use another, or set if_exists to replace: %w",
			up.Name, err,
		))
	}
	return nil
}

func exists(name string) error {
	return handler.Fail(handler.Conflict, fmt.Errorf("local: %q: %w", name, storage.ErrExists))
}

func (b *bucket) object(name string, size int64, sum string) storage.Object {
	where := append(append([]string{b.handler.dir}, b.folder...), filepath.FromSlash(name))
	return storage.Object{
		Name: name, Size: size, SHA256: sum,
		URL: (&url.URL{Scheme: "file", Path: filepath.ToSlash(filepath.Join(where...))}).String(),
	}
}

// Stat implements storage.Bucket.
func (b *bucket) Stat(_ context.Context, name string) (storage.Object, error) {
	folder, base, err := b.open(name, false)
	if err != nil {
		return storage.Object{}, missing(name, err)
	}
	defer folder.Close()
	info, err := folder.Lstat(base)
	if err != nil {
		return storage.Object{}, missing(name, err)
	}
	if !info.Mode().IsRegular() {
		return storage.Object{}, notAFile(name)
	}
	o := b.object(name, info.Size(), "")
	o.Modified = info.ModTime()
	return o, nil
}

func notAFile(name string) error {
	return handler.Fail(
		handler.Conflict,
		fmt.Errorf("local: %q exists, and is not a plain file; remove it, or give the destination another name", name),
	)
}

func missing(name string, err error) error {
	var classified *handler.Error
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("local: %q: %w", name, storage.ErrNotFound)
	case errors.As(err, &classified):
		return err
	}
	return failed("look at "+quote(name), err)
}

// Get implements storage.Bucket.
func (b *bucket) Get(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	folder, base, err := b.open(name, false)
	if err != nil {
		return nil, missing(name, err)
	}
	defer folder.Close()
	named, err := folder.Lstat(base)
	if err != nil {
		return nil, missing(name, err)
	}
	if !named.Mode().IsRegular() {
		return nil, notAFile(name)
	}
	f, err := folder.OpenFile(base, os.O_RDONLY|nonBlocking, 0)
	if err != nil {
		return nil, missing(name, err)
	}
	opened, err := f.Stat()
	if err == nil && !os.SameFile(named, opened) {
		err = notAFile(name)
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, missing(name, err)
	}
	return f, nil
}

// Delete implements storage.Bucket. Folders that are empty then are removed, up to the
// destination's own.
func (b *bucket) Delete(_ context.Context, name string) error {
	folder, base, err := b.open(name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer folder.Close()
	info, err := folder.Lstat(base)
	if err == nil && !info.Mode().IsRegular() {
		return notAFile(name)
	}
	if err == nil {
		err = folder.Remove(base)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed("remove "+quote(name), err)
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		parent, last, err := b.open(dir, false)
		if err != nil {
			return nil // somebody else was faster
		}
		info, err := parent.Lstat(last)
		if err == nil && info.IsDir() {
			err = parent.Remove(last) // refused unless it is empty
		}
		_ = parent.Close()
		if err != nil {
			return nil // there are other files in it
		}
	}
	return nil
}

// List implements storage.Bucket.
func (b *bucket) List(ctx context.Context, prefix string, yield func(storage.Object) error) error {
	root, err := b.handler.root()
	if err != nil {
		return err
	}
	defer root.Close()
	folder, err := descend(root, b.folder, false, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer folder.Close()
	return walk(ctx, folder, func(_ *os.Root, name string, info fs.FileInfo) error {
		if !info.Mode().IsRegular() || strings.HasPrefix(path.Base(name), temporary) ||
			!strings.HasPrefix(name, prefix) {
			return nil
		}
		o := b.object(name, info.Size(), "")
		o.Modified = info.ModTime()
		return yield(o)
	})
}
