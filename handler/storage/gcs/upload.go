package gcs

import (
	"context"
	"fmt"
	"hash/crc32"
	"time"

	gcstorage "cloud.google.com/go/storage"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Put implements storage.Bucket.
func (b *bucket) Put(ctx context.Context, up *storage.Upload) (storage.Object, error) {
	return b.PutResuming(ctx, up, nil)
}

// PutResuming implements storage.Resumer.
func (b *bucket) PutResuming(ctx context.Context, up *storage.Upload, c storage.Checkpoints) (storage.Object, error) {
	if size := b.config.chunkSize(); !up.Once && up.Size < size {
		stored, larger, err := b.putSmall(ctx, up, size)
		if !larger {
			return stored, err
		}
		// The memory was given back and the content is read again: to wait for more while holding
		// some could lock uploads up.
	}
	return b.putResumable(ctx, up, c)
}

// putSmall sends what fits into a chunk at once. It reads to the end first: only there is the
// content known to be what was accepted. Content of unknown size may turn out to be larger.
func (b *bucket) putSmall(
	ctx context.Context, up *storage.Upload, chunkSize int64,
) (stored storage.Object, larger bool, err error) {
	room := chunkSize
	if up.Size >= 0 {
		room = up.Size + 1 // to see the end
	}
	buffer, release, err := b.handler.memory.Get(ctx, room)
	if err != nil {
		return storage.Object{}, false, err
	}
	defer release()
	content, err := up.Open(ctx, 0)
	if err != nil {
		return storage.Object{}, false, err
	}
	defer content.Close()
	n, end, err := storage.Fill(storage.WithContext(ctx, content), buffer)
	switch {
	case err != nil:
		return storage.Object{}, false, err
	case end && (up.Size < 0 || int64(n) == up.Size):
		stored, err = b.putObject(ctx, up, buffer[:n])
		return stored, false, err
	case up.Size >= 0:
		return storage.Object{}, false, handler.Fail(
			handler.Internal,
			fmt.Errorf("gcs: %q: %w: its size is not %d bytes", up.Name, payload.ErrCorrupt, up.Size),
		)
	}
	return storage.Object{}, true, nil
}

func (b *bucket) putObject(ctx context.Context, up *storage.Upload, content []byte) (storage.Object, error) {
	var err error
	for try := range tries {
		if !wait(ctx, try) {
			break
		}
		var attrs *gcstorage.ObjectAttrs
		if attrs, err = b.write(ctx, up, content); err == nil {
			if attrs.Size != int64(len(content)) {
				return storage.Object{}, corrupt(
					up.Name, fmt.Sprintf("it has %d of %d bytes", attrs.Size, len(content)),
				)
			}
			up.Progress(int64(len(content)))
			stored := b.object(attrs)
			stored.SHA256 = up.SHA256
			return stored, nil
		}
		if !again(err) {
			break
		}
	}
	return storage.Object{}, b.failed(ctx, opPut, up.Name, err)
}

// write is one request. The writer copies what it is given, so nobody reads the memory after it has
// returned.
func (b *bucket) write(ctx context.Context, up *storage.Upload, content []byte) (*gcstorage.ObjectAttrs, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a writer that was not closed
	object := b.client.Object(up.Name)
	if !up.Replace {
		object = object.If(gcstorage.Conditions{DoesNotExist: true})
	}
	w := object.NewWriter(ctx)
	w.ChunkSize = 0
	w.ContentType, w.ForceEmptyContentType = up.ContentType, true
	w.Metadata = up.AllMetadata()
	w.StorageClass, w.KMSKeyName = b.config.StorageClass, b.config.KMSKey
	w.CRC32C, w.SendCRC32C = crc32.Checksum(content, castagnoli), true
	if !up.Transient {
		if until := b.retainUntil(); !until.IsZero() {
			w.Retention = &gcstorage.ObjectRetention{Mode: b.config.Retention.Mode, RetainUntil: until}
		}
		w.TemporaryHold = b.config.Retention.Hold == "temporary"
		w.EventBasedHold = b.config.Retention.Hold == "event_based"
	}
	_, err := w.Write(content)
	if closeErr := w.Close(); closeErr != nil { // it knows why
		err = closeErr
	}
	if err != nil {
		return nil, err
	}
	return w.Attrs(), nil
}

func (b *bucket) retainUntil() time.Time {
	if b.config.Retention.Mode == "" {
		return time.Time{}
	}
	return b.env.Now().UTC().AddDate(0, 0, b.config.Retention.Days)
}

// wait pauses before the tries after the first, and says whether there is time for one.
func wait(ctx context.Context, try int) bool {
	if try == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(time.Duration(try) * pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
