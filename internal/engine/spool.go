package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
)

// ChunkSize is what a stored payload is cut into.
const ChunkSize = 1 << 20

// Stored is the content of a payload in the database, read chunk by chunk, each in a transaction of its own.
func Stored(store *sqlstore.Store, organization, id string, info payload.Info) *payload.Content {
	return payload.NewContent(info, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return &chunks{ctx: ctx, store: store, organization: organization, id: id, next: int(offset / ChunkSize),
			skip: int(offset % ChunkSize), left: info.Size - offset}, nil
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
}

// Spool stores p in chunks, each in a transaction of its own, and describes it. One of at most inline bytes is returned
// instead. Above limit it fails with payload.ErrTooLarge. What a failure leaves behind is removed here or, after a crash,
// by maintenance.
func Spool(ctx context.Context, store *sqlstore.Store, organization, id string, p payload.Payload, limit, inline int64) (Spooled, error) {
	r := Spooled{Info: payload.Info{Name: p.Name(), ContentType: p.ContentType()}}
	w := &spooler{ctx: ctx, store: store, organization: organization, id: id, info: r.Info, limit: limit}
	hash := sha256.New()
	_, err := p.WriteTo(io.MultiWriter(w, hash))
	if err == nil && w.size <= inline && !w.begun {
		r.Inline = append([]byte{}, w.buffer...)
		return r, nil
	}
	if err == nil {
		err = w.flush()
	}
	if err == nil {
		r.Size, r.SHA256 = w.size, hex.EncodeToString(hash.Sum(nil))
		err = store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			return tx.CompletePayload(ctx, organization, id, r.Info)
		}, sqlstore.Again)
	}
	if err != nil && w.begun {
		_ = store.Write(context.WithoutCancel(ctx), func(ctx context.Context, tx *sqlstore.Tx) error {
			return tx.DropPayload(ctx, organization, id)
		}, nil) // maintenance finds what this leaves
	}
	return r, err
}

// SpoolTx stores data in chunks within a transaction.
func SpoolTx(ctx context.Context, tx *sqlstore.Tx, organization, id string, info payload.Info, data []byte) error {
	if err := tx.BeginPayload(ctx, organization, id, info); err != nil {
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
	organization, id string
	info             payload.Info
	limit, size      int64
	begun            bool
	i                int
	buffer           []byte
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
	err := s.store.Write(s.ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		if !s.begun {
			if err := tx.BeginPayload(ctx, s.organization, s.id, s.info); err != nil {
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
