package azure

import (
	"cmp"
	"context"
	"fmt"
	"hash/crc64"
	"io"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sync/errgroup"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// blocks is one upload under way.
type blocks struct {
	bucket   *bucket
	client   *blockblob.Client
	up       *storage.Upload
	state    state
	existing map[string]int64
	ids      []string // in order, by the one goroutine that reads

	mu   sync.Mutex
	done int64
}

// putBlocks stages content in blocks, and commits them when it has ended well.
func (b *bucket) putBlocks(
	ctx context.Context, up *storage.Upload, c storage.Checkpoints, blockSize int64,
) (storage.Object, error) {
	content, err := up.Open(ctx, 0)
	if err != nil {
		return storage.Object{}, err
	}
	defer content.Close()
	s, existing, err := b.begin(ctx, up, c, blockSize)
	if err != nil {
		return storage.Object{}, err
	}
	u := &blocks{bucket: b, client: b.client.NewBlockBlobClient(up.Name), up: up, state: s, existing: existing}
	if err := u.send(ctx, content); err != nil {
		return storage.Object{}, err
	}
	return u.commit(ctx)
}

// send reads content, and stages the blocks that are not there yet, several at a time. The content
// is read from its start also when an upload goes on: so its hash is verified, and a block counts
// as there only if its checksum says so. Where the content breaks off, what was read of it is still
// sent: the next attempt has it.
func (u *blocks) send(ctx context.Context, content io.Reader) error {
	group, sending := errgroup.WithContext(ctx)
	group.SetLimit(u.bucket.config.parallel())
	err := u.read(sending, content, func(id string, b []byte, sum uint64, release func()) {
		group.Go(func() error {
			defer release()
			return u.stage(sending, id, b, sum)
		})
	})
	return cmp.Or(err, group.Wait()) // where a block failed first, err is its error
}

// read hands each block that is to be sent to start, with memory that release gives back.
func (u *blocks) read(
	ctx context.Context, content io.Reader, start func(id string, b []byte, sum uint64, release func()),
) error {
	content = storage.WithContext(ctx, content)
	var size int64
	for n := 0; ; n++ {
		b, release, err := u.bucket.handler.memory.Get(ctx, u.state.BlockSize)
		if err != nil {
			return err
		}
		length, end, err := storage.Fill(content, b)
		size += int64(length)
		if err == nil && end && u.up.Size >= 0 && size != u.up.Size {
			err = handler.Fail(
				handler.Internal,
				fmt.Errorf("azure: %q: %w: %d of %d bytes", u.up.Name, payload.ErrCorrupt, size, u.up.Size),
			)
		}
		if err == nil && n >= maxBlocks && length > 0 {
			err = handler.Fail(handler.Validation, fmt.Errorf(
				"azure: %q has more than %d blocks of %d bytes; give the destination a larger block_size", u.up.Name,
				maxBlocks, u.state.BlockSize,
			))
		}
		if err != nil {
			release()
			return err
		}
		if length == 0 {
			release()
			return nil
		}
		b = b[:length]
		sum := crc64.Checksum(b, table)
		id := blockID(n, sum)
		u.ids = append(u.ids, id)
		if there, ok := u.existing[id]; ok && there == int64(length) {
			release()
			u.add(int64(length))
		} else {
			start(id, b, sum, release)
		}
		if end {
			return nil
		}
	}
}

func (u *blocks) stage(ctx context.Context, id string, b []byte, sum uint64) error {
	body := remote.NewBody(b)
	defer body.Seal()
	_, err := u.client.StageBlock(ctx, id, body, &blockblob.StageBlockOptions{
		CPKScopeInfo: u.bucket.scope(), TransactionalValidation: blob.TransferValidationTypeCRC64(sum),
	})
	if err != nil {
		return u.bucket.failed(ctx, opBlock, u.up.Name, err)
	}
	u.add(int64(len(b)))
	return nil
}

func (u *blocks) add(size int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done += size
	u.up.Progress(u.done)
}

func (u *blocks) commit(ctx context.Context) (storage.Object, error) {
	a := u.bucket.attributes(u.up)
	out, err := u.client.CommitBlockList(ctx, u.ids, &blockblob.CommitBlockListOptions{
		Metadata: a.metadata, Tags: a.tags, Tier: a.tier, HTTPHeaders: a.headers, CPKScopeInfo: a.scope,
		AccessConditions: a.conditions,
	})
	if err != nil {
		return storage.Object{}, u.bucket.failed(ctx, opCommit, u.up.Name, err)
	}
	stored := storage.Object{
		Name: u.up.Name, Size: u.done, URL: u.bucket.url(u.up.Name), SHA256: u.up.SHA256, Item: u.up.Item,
		ETag: etag(out.ETag), Version: value(out.VersionID),
	}
	// Each block's checksum was verified as it came; what is left to see is that all of them are
	// there.
	if found, err := u.bucket.Stat(ctx, u.up.Name); err == nil && found.Size != u.done && found.ETag == stored.ETag {
		return storage.Object{}, corrupt(u.up.Name, fmt.Sprintf("it has %d of %d bytes", found.Size, u.done))
	}
	return stored, nil // that it cannot be looked at is no failure: it is stored
}
