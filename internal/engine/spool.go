package engine

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

// ChunkSize is what a stored payload is cut into.
const ChunkSize = 1 << 20

// Stored is the content of a payload in the store or, chunk by chunk and each in a transaction of its own, in the database.
func Stored(store *sqlstore.Store, from payload.Store, organization, id string, info payload.Info) *payload.Content {
	return payload.NewContent(info, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		var key string
		err := store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			var found bool
			var err error
			if key, found, err = tx.PayloadKey(ctx, organization, id); err == nil && !found {
				err = fmt.Errorf("%w: payload %s", errNoContent, id)
			}
			return err
		})
		switch {
		case err != nil:
			return nil, err
		case key == "":
			return &chunks{ctx: ctx, store: store, organization: organization, id: id, next: int(offset / ChunkSize),
				skip: int(offset % ChunkSize), left: info.Size - offset}, nil
		case from == nil:
			return nil, fmt.Errorf("the payload %s is in a store, and this process has none; give it the same delivery.WithPayloadStore as the others", id)
		case offset == info.Size:
			return io.NopCloser(strings.NewReader("")), nil
		}
		return from.Open(ctx, key, offset)
	})
}

type chunks struct {
	ctx              context.Context //nolint:containedctx // a reader lives as long as the call that opened it
	store            *sqlstore.Store
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
		err := c.store.Read(c.ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			data, err = tx.Chunk(ctx, c.organization, c.id, c.next)
			return err
		})
		if err != nil {
			return 0, err
		}
		if len(data) <= c.skip {
			return 0, fmt.Errorf("%w: chunk %d of payload %s", errNoContent, c.next, c.id)
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

// Spooled is what Spool made of a payload: Inline holds all of it where it is small enough.
type Spooled struct {
	payload.Info
	Inline []byte
	Key    string // in the store
}

// Spool stores p, in the store where there is one, else in chunks, each in a transaction of its own, and describes it. One of
// at most inline bytes is returned instead. Above limit it fails with payload.ErrTooLarge. What a failure leaves behind is
// removed here or, after a crash, by maintenance.
func Spool(ctx context.Context, store *sqlstore.Store, into payload.Store, organization, id string, p payload.Payload, limit, inline int64) (Spooled, error) {
	r := Spooled{Info: payload.Info{Name: p.Name(), ContentType: p.ContentType()}}
	w := &spooler{ctx: ctx, store: store, into: into, organization: organization, id: id, info: r.Info, limit: limit}
	hash := sha256.New()
	_, err := p.WriteTo(io.MultiWriter(w, hash))
	if err == nil && w.size <= inline && !w.begun {
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
		err = store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			return tx.CompletePayload(ctx, organization, id, r.Info)
		}, sqlstore.Again)
	}
	if err != nil && w.begun {
		_ = Drop(context.WithoutCancel(ctx), store, into, organization, id, w.key) // maintenance finds what this leaves
	}
	return r, err
}

// Drop removes a payload that nothing refers to, first from the store.
func Drop(ctx context.Context, store *sqlstore.Store, from payload.Store, organization, id, key string) error {
	if key != "" && from != nil {
		if err := from.Delete(ctx, key); err != nil {
			return err
		}
	}
	return store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error { return tx.DropPayload(ctx, organization, id) }, sqlstore.Again)
}

// StorePrefix begins the keys of a database's payloads in the store.
func StorePrefix(ctx context.Context, store *sqlstore.Store) (prefix string, err error) {
	err = store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		id, err := tx.Installation(ctx)
		if err == nil && id == "" {
			err = sqlstore.ErrNotMigrated
		}
		prefix = id + "/"
		return err
	})
	return prefix, err
}

// SpoolTx stores data in chunks within a transaction.
func SpoolTx(ctx context.Context, tx *sqlstore.Tx, organization, id string, info payload.Info, data []byte) error {
	if err := tx.BeginPayload(ctx, organization, id, info, ""); err != nil {
		return err
	}
	for i := 0; i*ChunkSize < len(data); i++ {
		if err := tx.PutChunk(ctx, organization, id, i, data[i*ChunkSize:min(len(data), (i+1)*ChunkSize)]); err != nil {
			return err
		}
	}
	return tx.CompletePayload(ctx, organization, id, info)
}

type spooler struct {
	ctx              context.Context //nolint:containedctx // a writer lives within the call that made it
	store            *sqlstore.Store
	into             payload.Store // nil: chunks
	organization, id string
	info             payload.Info
	limit, size      int64
	begun            bool
	i                int
	buffer           []byte

	key string // in the store
	put *put
}

func (s *spooler) Write(b []byte) (int, error) {
	if s.limit > 0 && s.size+int64(len(b)) > s.limit {
		return 0, fmt.Errorf("%w: more than %d bytes", payload.ErrTooLarge, s.limit)
	}
	written := 0
	for len(b) > 0 {
		n := min(len(b), ChunkSize-len(s.buffer))
		s.buffer = append(s.buffer, b[:n]...)
		b = b[n:]
		written += n
		s.size += int64(n)
		if len(s.buffer) == ChunkSize {
			if err := s.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (s *spooler) flush() error {
	if s.into != nil {
		return s.forward()
	}
	err := s.store.Write(s.ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		if !s.begun {
			if err := tx.BeginPayload(ctx, s.organization, s.id, s.info, ""); err != nil {
				return err
			}
		}
		if len(s.buffer) == 0 {
			return nil
		}
		return tx.PutChunk(ctx, s.organization, s.id, s.i, s.buffer)
	}, sqlstore.Again)
	s.begun = true
	s.i++
	s.buffer = s.buffer[:0]
	return err
}

// forward hands what is buffered to the store. The row is there before the object is, so that nothing in the store is
// unknown.
func (s *spooler) forward() error {
	if s.put == nil {
		prefix, err := StorePrefix(s.ctx, s.store)
		if err != nil {
			return err
		}
		s.key = prefix + s.id[len(s.id)-2:] + "/" + s.id // the end of an id is random: the folders fill evenly
		s.begun = true
		if err := s.store.Write(s.ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			return tx.BeginPayload(ctx, s.organization, s.id, s.info, s.key)
		}, sqlstore.Again); err != nil {
			return err
		}
		s.put = begin(s.ctx, s.into, s.key)
	}
	if len(s.buffer) == 0 {
		return nil
	}
	_, err := s.put.w.Write(s.buffer)
	s.buffer = s.buffer[:0]
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
