// Package spool keeps payloads that are streamed: in the host's payload store where there is one,
// else in chunks in the database.
package spool

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// ChunkSize is how many bytes a chunk in the database has; the last one of a payload has fewer.
const ChunkSize = 1 << 20

// ErrGone says that a payload that was accepted is not there any more.
var ErrGone = errors.New("the stored payload is gone")

// Spool keeps payloads. It may be used by many goroutines at once.
type Spool struct {
	db      *sqlstore.Store
	objects payload.Store // nil: chunks in the database
}

// New returns a Spool on a database; objects is the host's payload store, nil for none.
func New(db *sqlstore.Store, objects payload.Store) *Spool { return &Spool{db, objects} }

// Open returns the content of a payload. Chunks are read one by one, each in a transaction of its
// own.
func (s *Spool) Open(organization, id string, info payload.Info) *payload.Content {
	return payload.NewContent(info, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		var key string
		err := s.db.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			var found bool
			var err error
			if key, found, err = keyOf(ctx, tx, organization, id); err == nil && !found {
				err = fmt.Errorf("%w: payload %s", ErrGone, id)
			}
			return err
		})
		switch {
		case err != nil:
			return nil, err
		case key == "":
			return &chunks{
				ctx: ctx, db: s.db, organization: organization, id: id,
				next: int(offset / ChunkSize), skip: int(offset % ChunkSize), left: info.Size - offset,
			}, nil
		case s.objects == nil:
			return nil, fmt.Errorf("the payload %s is in a payload store, and this process has none; "+
				"give it the same delivery.WithPayloadStore as the others", id)
		case offset == info.Size:
			return io.NopCloser(strings.NewReader("")), nil
		}
		return s.objects.Open(ctx, key, offset)
	})
}

type chunks struct {
	ctx              context.Context //nolint:containedctx // a reader lives as long as the call that opened it
	db               *sqlstore.Store
	organization, id string
	next, skip       int
	left             int64
	buffer           []byte
}

func (c *chunks) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if c.left <= 0 {
		return 0, io.EOF
	}
	if len(c.buffer) == 0 {
		var data []byte
		err := c.db.Read(c.ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			data, err = readChunk(ctx, tx, c.organization, c.id, c.next)
			return err
		})
		if err != nil {
			return 0, err
		}
		if len(data) <= c.skip {
			return 0, fmt.Errorf("%w: chunk %d of payload %s", ErrGone, c.next, c.id)
		}
		c.buffer, c.next, c.skip = data[c.skip:], c.next+1, 0
	}
	n := copy(b, c.buffer)
	c.buffer = c.buffer[n:]
	c.left -= int64(n)
	return n, nil
}

func (c *chunks) Close() error {
	c.buffer, c.left = nil, 0
	return nil
}

// Stored describes a payload after Put. Inline holds all of it where it is small enough; then
// nothing was written.
type Stored struct {
	payload.Info
	Inline []byte
	Key    string // in the payload store; "" for chunks
}

// Limits bound what Put takes.
type Limits struct {
	Size   int64 // bytes; a larger payload is payload.ErrTooLarge. 0: no limit
	Inline int64 // bytes up to which a payload is returned instead of written; negative: none is
}

// Put stores p in the payload store, or in chunks that are each written in a transaction of their
// own. What a failure leaves behind is removed here or, after a crash, by maintenance.
func (s *Spool) Put(ctx context.Context, organization, id string, p payload.Payload, limits Limits) (Stored, error) {
	r := Stored{Info: payload.Info{Name: p.Name(), ContentType: p.ContentType()}}
	w := &writer{ctx: ctx, spool: s, organization: organization, id: id, info: r.Info, limit: limits.Size}
	hash := sha256.New()
	_, err := p.WriteTo(io.MultiWriter(w, hash))
	if err == nil && w.size <= limits.Inline && !w.begun {
		r.Inline = append([]byte{}, w.buffer...)
		return r, nil
	}
	if err == nil {
		err = w.flush()
	}
	if w.put != nil {
		err = w.put.end(err)
	}
	if err == nil {
		r.Key, r.Size, r.SHA256 = w.key, w.size, hex.EncodeToString(hash.Sum(nil))
		err = s.db.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
			return completePayload(ctx, tx, organization, id, r.Info)
		}, Committed: sqlstore.Again})
	}
	if err != nil && w.begun {
		_ = s.Drop(context.WithoutCancel(ctx), organization, id, w.key) // maintenance finds what this leaves
	}
	return r, err
}

// PutIn stores data in chunks within a transaction.
func (s *Spool) PutIn(
	ctx context.Context, tx *sqlstore.Tx, organization, id string, info payload.Info, data []byte,
) error {
	if err := insertPayload(ctx, tx, organization, id, info, ""); err != nil {
		return err
	}
	for i := 0; i*ChunkSize < len(data); i++ {
		chunk := data[i*ChunkSize : min(len(data), (i+1)*ChunkSize)]
		if err := insertChunk(ctx, tx, organization, id, i, chunk); err != nil {
			return err
		}
	}
	return completePayload(ctx, tx, organization, id, info)
}

// Drop removes a payload that nothing refers to, from the payload store first.
func (s *Spool) Drop(ctx context.Context, organization, id, key string) error {
	if key != "" && s.objects != nil {
		if err := s.objects.Delete(ctx, key); err != nil {
			return err
		}
	}
	return s.db.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		return deletePayload(ctx, tx, organization, id)
	}, Committed: sqlstore.Again})
}

// Prefix returns what the keys of this database's payloads begin with in the payload store.
func (s *Spool) Prefix(ctx context.Context) (prefix string, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		id, err := installation(ctx, tx)
		if err == nil && id == "" {
			err = sqlstore.ErrNotMigrated
		}
		prefix = id + "/"
		return err
	})
	return prefix, err
}

// writer takes the bytes of one Put, and writes them chunk by chunk.
type writer struct {
	ctx              context.Context //nolint:containedctx // a writer lives within the call that made it
	spool            *Spool
	organization, id string
	info             payload.Info
	limit, size      int64
	begun            bool
	i                int
	buffer           []byte

	key string // in the store
	put *put
}

func (w *writer) Write(b []byte) (int, error) {
	if w.limit > 0 && w.size+int64(len(b)) > w.limit {
		return 0, fmt.Errorf("%w: more than %d bytes", payload.ErrTooLarge, w.limit)
	}
	written := 0
	for len(b) > 0 {
		n := min(len(b), ChunkSize-len(w.buffer))
		w.buffer = append(w.buffer, b[:n]...)
		b = b[n:]
		written += n
		w.size += int64(n)
		if len(w.buffer) == ChunkSize {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (w *writer) flush() error {
	if w.spool.objects != nil {
		return w.forward()
	}
	err := w.spool.db.Commit(w.ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		if !w.begun {
			if err := insertPayload(ctx, tx, w.organization, w.id, w.info, ""); err != nil {
				return err
			}
		}
		if len(w.buffer) == 0 {
			return nil
		}
		return insertChunk(ctx, tx, w.organization, w.id, w.i, w.buffer)
	}, Committed: sqlstore.Again})
	w.begun = true
	w.i++
	w.buffer = w.buffer[:0]
	return err
}

// forward hands what is buffered to the store. The row is there before the object is, so that
// nothing in the store is unknown.
func (w *writer) forward() error {
	if w.put == nil {
		prefix, err := w.spool.Prefix(w.ctx)
		if err != nil {
			return err
		}
		w.key = prefix + w.id[len(w.id)-2:] + "/" + w.id // the end of an id is random: the folders fill evenly
		w.begun = true
		if err := w.spool.db.Commit(w.ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
			return insertPayload(ctx, tx, w.organization, w.id, w.info, w.key)
		}, Committed: sqlstore.Again}); err != nil {
			return err
		}
		w.put = begin(w.ctx, w.spool.objects, w.key)
	}
	if len(w.buffer) == 0 {
		return nil
	}
	_, err := w.put.w.Write(w.buffer)
	w.buffer = w.buffer[:0]
	return err
}

// put is a Store.Put under way in a goroutine, which end waits for.
type put struct {
	w    *io.PipeWriter
	done chan error
}

var errUnread = errors.New("the payload store did not read its payload to the end")

func begin(ctx context.Context, into payload.Store, key string) *put {
	r, w := io.Pipe()
	p := &put{w: w, done: make(chan error, 1)}
	go func() {
		var err error
		ended := false
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("the payload store panicked: %v", v)
			} else if err == nil && !ended {
				err = errUnread
			}
			_ = r.CloseWithError(cmp.Or(err, errUnread)) // a writer waits no longer
			p.done <- err
		}()
		err = into.Put(ctx, key, readerFunc(func(b []byte) (int, error) {
			n, err := r.Read(b)
			ended = ended || err == io.EOF //nolint:errorlint // the end is bare
			return n, err
		}))
	}()
	return p
}

// end says how the content ended: with err, or well.
func (p *put) end(err error) error {
	_ = p.w.CloseWithError(err) // nil is io.EOF
	putErr := <-p.done
	if err == nil || errors.Is(err, errUnread) || putErr != nil && errors.Is(err, putErr) {
		return putErr // the writer's error is what the store made of it
	}
	return err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
