package storage

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/deliverykit/delivery/handler"
)

// ErrExists is wrapped by what Bucket.Put returns when there is an object of that name already.
var ErrExists = errors.New("storage: there is an object of that name already")

// ErrNotFound is wrapped by what Bucket returns for an object that is not there.
var ErrNotFound = errors.New("storage: there is no such object")

// Bucket is what a driver implements: a flat set of objects by name, with slashes between the
// segments of a name. It is safe for concurrent use. Its errors are classified (handler.Error),
// hold no secret and say what to do; those of Open are passed on as they are.
type Bucket interface {
	// Put stores what up.Open gives, and all of it or nothing: until Put returns without an error,
	// no reader sees an object that was not there before. Unless up.Replace, it creates the object
	// only if there is none, else the error wraps ErrExists. Where up.SHA256 is known, content that
	// differs from it never becomes visible. What was stored is verified by size and, as far as the
	// other side can, by checksum.
	Put(ctx context.Context, up *Upload) (Object, error)
	// Stat describes an object.
	Stat(ctx context.Context, name string) (Object, error)
	// Get reads an object from an offset in bytes.
	Get(ctx context.Context, name string, offset int64) (io.ReadCloser, error)
	// Delete removes an object. That there is none is no error.
	Delete(ctx context.Context, name string) error
	// List yields the objects whose names start with prefix, in no order, until yield returns an
	// error, which it returns.
	List(ctx context.Context, prefix string, yield func(Object) error) error
}

// Resumer is a Bucket that can go on with a Put that an earlier attempt began, in this process or
// another.
type Resumer interface {
	// PutResuming is Put; what it needs to go on is kept in c.
	PutResuming(ctx context.Context, up *Upload, c Checkpoints) (Object, error)
}

// Remover is a Bucket that can remove an object only if it is still the one that was stored, by its
// version or ETag. It returns handler.Removed, Missing or Changed, or an error.
type Remover interface {
	Remove(ctx context.Context, o Object) (handler.Removal, error)
}

// Sweeper is a Bucket whose attempts can leave something behind when their process dies.
type Sweeper interface {
	// Sweep removes what uploads left behind that is older than age, by the clock that stamped it,
	// and returns how many. It leaves alone what need not be ours: names is the template of the
	// destination's names.
	Sweep(ctx context.Context, age time.Duration, names *Template) (removed int, err error)
}

// Checkpoints keeps the state of one item between attempts; *handler.Request is one.
type Checkpoints interface {
	Resume(v any) (bool, error)
	Checkpoint(ctx context.Context, v any) error
}

// Upload is one object to be stored.
type Upload struct {
	Name        string
	Size        int64  // -1 if it is not known before it is read
	SHA256      string // in hex; "" if not known
	Item        string // the item that it belongs to; kept with the object where the driver can
	ContentType string
	Metadata    map[string]string
	Tags        map[string]string
	Replace     bool // what is there is replaced
	Transient   bool // it is deleted before long: no retention, no tier of its own, and no SHA-256 where none is given
	Once        bool // Open can be called once, at 0; the size is not known then
	// Open opens the content at an offset, as often as needed. Where SHA256 is known, who reads all
	// of it gets an error in place of io.EOF if it differs, as of a payload.Content: a driver need
	// not hash it once more.
	Open func(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Progress is told how many bytes the other side has, by one goroutine at a time.
	Progress func(done int64)
}

// Object describes a stored object. What a driver does not know is zero.
type Object struct {
	Name     string
	Size     int64
	SHA256   string // of its content, in hex
	Item     string // the item that it was stored for
	URL      string
	ETag     string
	Version  string
	Checksum string // as the other side gives it, after the name of its algorithm and a colon
	Modified time.Time
}
