package storage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/deliverykit/delivery/handler"
)

// Target is where one attempt, or one connection test, stores its object.
type Target struct {
	Bucket     Bucket
	Naming     Naming
	Attributes Attributes
}

// lookFirst is from which size on the first attempt too looks whether the object is there, before
// it sends the content.
const lookFirst = 8 << 20

// Deliver makes one attempt to store the payload of req. That the object is there with this content
// is success, whoever stored it.
func (t Target) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	template, err := t.Naming.Template()
	if err != nil {
		return nil, handler.Fail(handler.Configuration, fmt.Errorf("storage: the name's template %w", err))
	}
	name, err := template.Name(req)
	if err != nil {
		return nil, err
	}
	result, err := t.deliver(ctx, req, name)
	if err != nil {
		return nil, ended(ctx, err)
	}
	return result, nil
}

func (t Target) deliver(ctx context.Context, req *handler.Request, name string) (*handler.Result, error) {
	replace := t.Naming.IfExists == Replace
	if size := req.Payload.Info().Size; req.Attempt > 1 || !replace && (size < 0 || size >= lookFirst) {
		found, err := t.Bucket.Stat(ctx, name)
		switch {
		case err == nil:
			result, err := t.settle(ctx, req, found)
			if err == nil || !replace ||
				!errors.Is(err, errDiffers) && handler.Classify(err).Category != handler.Authentication {
				return result, err
			}
		case errors.Is(err, ErrNotFound):
		case handler.Classify(err).Category == handler.Authentication:
			// A credential that may write, and not read, is a good one.
		default:
			return nil, err
		}
	}
	up := t.upload(req, name)
	up.Replace = replace
	stored, err := put(ctx, t.Bucket, up, req)
	if errors.Is(err, ErrExists) {
		found, statErr := t.Bucket.Stat(ctx, name)
		switch {
		case errors.Is(statErr, ErrNotFound):
			return nil, handler.Fail(
				handler.Remote,
				fmt.Errorf("storage: %q was removed while it was looked at; the next attempt stores it: %w", name, err),
			)
		case statErr != nil && handler.Classify(statErr).Category == handler.Authentication:
			return nil, handler.Fail(handler.Authentication, fmt.Errorf(
				"storage: there is an object %q already, and it may not be read to see whether its content is "+
					"the same: %w",
				name, statErr,
			))
		case statErr != nil:
			return nil, statErr
		}
		return t.settle(ctx, req, found)
	}
	if err != nil {
		return nil, err
	}
	r := result(stored, req)
	r.Removable = true
	return r, nil
}

func put(ctx context.Context, b Bucket, up *Upload, c Checkpoints) (Object, error) {
	if r, ok := b.(Resumer); ok {
		return r.PutResuming(ctx, up, c)
	}
	return b.Put(ctx, up)
}

func (t Target) upload(req *handler.Request, name string) *Upload {
	info := req.Payload.Info()
	return &Upload{
		Name: name, Size: info.Size, SHA256: info.SHA256, Item: req.ItemID,
		ContentType: cmp.Or(t.Attributes.ContentType, info.ContentType),
		Metadata:    t.Attributes.Metadata, Tags: t.Attributes.Tags,
		Open:     quiet(req),
		Progress: req.Progress,
	}
}

// quiet opens the payload without reporting progress: what was read is not yet what the other side
// has.
func quiet(req *handler.Request) func(ctx context.Context, offset int64) (io.ReadCloser, error) {
	silent := *req
	silent.Transfer = nil
	return silent.Open
}

func result(o Object, req *handler.Request) *handler.Result {
	details := map[string]string{"size": strconv.FormatInt(o.Size, 10)}
	for name, v := range map[string]string{
		"etag": o.ETag, "version": o.Version, "checksum": o.Checksum,
		"sha256": cmp.Or(o.SHA256, req.Payload.Info().SHA256),
	} {
		if v != "" {
			details[name] = v
		}
	}
	return &handler.Result{Reference: handler.Reference{ID: o.Name, URL: o.URL, Details: details}}
}

var errDiffers = errors.New("storage: another content is there")

// settle is the outcome where there is an object already.
func (t Target) settle(ctx context.Context, req *handler.Request, found Object) (*handler.Result, error) {
	differs, err := t.differs(ctx, req, found)
	if err != nil {
		return nil, err
	}
	if differs != "" {
		return nil, handler.Fail(handler.Conflict, fmt.Errorf(
			"%w: there is an object %q already, %s; remove it, or give the destination a name that is unique, "+
				"such as one with {item}",
			errDiffers, found.Name, differs,
		))
	}
	req.Progress(found.Size)
	r := result(found, req)
	r.Removable = t.ours(req, found)
	r.Notes = map[string]string{"existing": "the same content was there already, and nothing was written"}
	return r, nil
}

// ours reports whether an object was stored for this item, by an attempt whose end was not
// recorded.
func (t Target) ours(req *handler.Request, found Object) bool {
	if found.Item != "" {
		return found.Item == req.ItemID
	}
	template, err := t.Naming.Template()
	return err == nil && template.Unique() // nobody else comes upon such a name
}

// differs compares the payload with an object, by what is known of both, else by reading them. It
// returns "" if they are the same.
func (t Target) differs(ctx context.Context, req *handler.Request, found Object) (string, error) {
	info := req.Payload.Info()
	if info.Size >= 0 && info.Size != found.Size {
		return fmt.Sprintf("of %d bytes where the payload has %d", found.Size, info.Size), nil
	}
	theirs := found.SHA256
	if theirs == "" {
		var err error
		theirs, _, err = digest(ctx, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			return t.Bucket.Get(ctx, found.Name, offset)
		})
		denied := err != nil && handler.Classify(err).Category == handler.Authentication
		switch {
		case denied && found.Item != "" && found.Item == req.ItemID && info.Size >= 0:
			return "", nil // stored for this item, whole, and of its size
		case denied:
			return "", handler.Fail(handler.Authentication, fmt.Errorf(
				"storage: there is an object %q already, and it may not be read to see whether its content is "+
					"the same: %w",
				found.Name, err,
			))
		case err != nil:
			return "", err
		}
	}
	ours := info.SHA256
	if ours == "" {
		var err error
		var size int64
		if ours, size, err = digest(ctx, quiet(req)); err != nil {
			return "", err
		}
		if size != found.Size {
			return fmt.Sprintf("of %d bytes where the payload has %d", found.Size, size), nil
		}
	}
	if ours != theirs {
		return "with another content of the same size (the SHA-256 differs)", nil
	}
	return "", nil
}

func digest(
	ctx context.Context, open func(context.Context, int64) (io.ReadCloser, error),
) (sum string, size int64, err error) {
	r, err := open(ctx, 0)
	if err != nil {
		return "", 0, err
	}
	defer r.Close()
	h := sha256.New()
	size, err = io.Copy(h, WithContext(ctx, r))
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// WithContext returns a reader that fails with the cause of ctx once that has ended.
func WithContext(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(b []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(b)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// ended replaces the many ways in which the end of ctx shows by its cause.
func ended(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return handler.Fail(handler.Timeout, fmt.Errorf(
			"storage: the object was not stored within the attempt's time; a large one needs a longer timeout in "+
				"the destination's limits: %w",
			cause,
		))
	}
	return fmt.Errorf("storage: the attempt ended: %w", cause)
}

// Fill reads until b is full or r has ended, which only a bare io.EOF says: an error that wraps one
// is an error.
func Fill(r io.Reader, b []byte) (n int, end bool, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	if err == io.EOF {
		return n, true, nil
	}
	return n, false, err
}
