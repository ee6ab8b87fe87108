package storage

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/deliverykit/delivery/handler"
)

// ErrExists is wrapped by the error of Bucket.Put when an object of that name already exists.
var ErrExists = errors.New("storage: there is an object of that name already")

// ErrNotFound is wrapped by the errors of Bucket about an object that does not exist.
var ErrNotFound = errors.New("storage: there is no such object")

// Bucket is a flat set of objects by name; slashes separate the segments of a name. Drivers
// implement it. It is safe for concurrent use. Its errors are classified (handler.Error), hold no
// secret and say what to do. Errors of Upload.Open are passed on unchanged.
type Bucket interface {
	// Put stores the whole content that up.Open returns, or nothing: a new object becomes visible
	// only when it is complete. Unless up.Replace is set, it creates the object only if there is
	// none; otherwise the error wraps ErrExists. If up.SHA256 is set, content that differs from it
	// never becomes visible. Put verifies the size of what was stored and, as far as the other side
	// supports it, a checksum.
	Put(ctx context.Context, up *Upload) (Object, error)
	// Stat describes an object.
	Stat(ctx context.Context, name string) (Object, error)
	// Get reads an object from an offset in bytes.
	Get(ctx context.Context, name string, offset int64) (io.ReadCloser, error)
	// Delete removes an object. A missing object is not an error.
	Delete(ctx context.Context, name string) error
	// List calls yield for every object whose name starts with prefix, in no particular order. It
	// stops at the first error of yield and returns it.
	List(ctx context.Context, prefix string, yield func(Object) error) error
}

// Resumer is a Bucket that can continue a Put that an earlier attempt began, in this or another
// process.
type Resumer interface {
	// PutResuming does what Put does, and keeps in c what a later attempt needs to continue.
	PutResuming(ctx context.Context, up *Upload, c Checkpoints) (Object, error)
}

// Remover is a Bucket that can remove an object only if it is unchanged, by version or ETag. It
// returns handler.Removed, Missing or Changed, or an error.
type Remover interface {
	Remove(ctx context.Context, o Object) (handler.Removal, error)
}

// Sweeper is a Bucket whose attempts can leave something behind when their process dies.
type Sweeper interface {
	// Sweep removes leftovers of uploads that are older than age, by the clock that stamped them,
	// and returns their number. names is the template of the destination's names: leftovers that
	// may belong to others stay.
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
	// Open opens the content at an offset, any number of times. If SHA256 is set, reading to the
	// end of different content fails in place of io.EOF, as with payload.Content: a driver need not
	// hash it again.
	Open func(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Progress receives the number of bytes that the other side has. It is called by one goroutine
	// at a time.
	Progress func(done int64)
}

// Object describes a stored object. Fields that a driver does not know are zero.
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
