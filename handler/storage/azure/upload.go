package azure

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// polynomial is of the CRC-64 that Azure Storage computes, which is that of NVMe: the one of the
// SDK is not exported.
const polynomial = 0x9A6C9329AC4BC9B5

var table = crc64.MakeTable(polynomial)

// Put implements storage.Bucket.
func (b *bucket) Put(ctx context.Context, up *storage.Upload) (storage.Object, error) {
	return b.PutResuming(ctx, up, nil)
}

// PutResuming implements storage.Resumer.
func (b *bucket) PutResuming(ctx context.Context, up *storage.Upload, c storage.Checkpoints) (storage.Object, error) {
	blockSize := b.config.blockSize(up.Size)
	if up.Once || up.Size >= blockSize {
		return b.putBlocks(ctx, up, c, blockSize)
	}
	stored, larger, err := b.putSmall(ctx, up, blockSize)
	if larger {
		// The memory was given back and the content is read again: to wait for more while holding
		// some could lock uploads up.
		return b.putBlocks(ctx, up, c, blockSize)
	}
	return stored, err
}

// putSmall sends what fits into a block at once. It reads to the end first: only there is the
// content known to be what was accepted. Content of unknown size may turn out to be larger.
func (b *bucket) putSmall(
	ctx context.Context, up *storage.Upload, blockSize int64,
) (stored storage.Object, larger bool, err error) {
	room := blockSize
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
		stored, err = b.putBlob(ctx, up, buffer[:n])
		return stored, false, err
	case up.Size >= 0:
		return storage.Object{}, false, handler.Fail(
			handler.Internal,
			fmt.Errorf("azure: %q: %w: its size is not %d bytes", up.Name, payload.ErrCorrupt, up.Size),
		)
	}
	return storage.Object{}, true, nil
}

func (b *bucket) putBlob(ctx context.Context, up *storage.Upload, content []byte) (storage.Object, error) {
	sum := crc64.Checksum(content, table)
	body := remote.NewBody(content)
	defer body.Seal()
	a := b.attributes(up)
	out, err := b.client.NewBlockBlobClient(up.Name).Upload(ctx, body, &blockblob.UploadOptions{
		Metadata: a.metadata, Tags: a.tags, Tier: a.tier, HTTPHeaders: a.headers, CPKScopeInfo: a.scope,
		AccessConditions:        a.conditions,
		TransactionalValidation: blob.TransferValidationTypeCRC64(sum),
	})
	if err != nil {
		return storage.Object{}, b.failed(ctx, opPut, up.Name, err)
	}
	if theirs := out.ContentCRC64; len(theirs) == 8 && binary.LittleEndian.Uint64(theirs) != sum {
		return storage.Object{}, corrupt(up.Name, "the checksum differs")
	}
	up.Progress(int64(len(content)))
	return storage.Object{
		Name: up.Name, Size: int64(len(content)), URL: b.url(up.Name), SHA256: up.SHA256, Item: up.Item,
		ETag: etag(out.ETag), Version: value(out.VersionID), Checksum: checksum("md5", out.ContentMD5),
	}, nil
}

// attributes are what both ways of creating a blob are told alike.
type attributes struct {
	metadata   map[string]*string
	tags       map[string]string
	tier       *blob.AccessTier
	headers    *blob.HTTPHeaders
	scope      *blob.CPKScopeInfo
	conditions *blob.AccessConditions
}

func (b *bucket) attributes(up *storage.Upload) attributes {
	a := attributes{metadata: map[string]*string{}, tags: up.Tags, headers: &blob.HTTPHeaders{}}
	for name, v := range up.AllMetadata() {
		a.metadata[metadataName(name)] = &v
	}
	if up.ContentType != "" {
		a.headers.BlobContentType = &up.ContentType
	}
	if b.config.Tier != "" && !up.Transient { // what is archived cannot be read, and is paid for half a year
		tier := blob.AccessTier(b.config.Tier)
		a.tier = &tier
	}
	a.scope = b.scope()
	if !up.Replace {
		none := azcore.ETagAny
		a.conditions = &blob.AccessConditions{
			ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &none},
		}
	}
	return a
}

func (b *bucket) scope() *blob.CPKScopeInfo {
	if b.config.EncryptionScope == "" {
		return nil
	}
	return &blob.CPKScopeInfo{EncryptionScope: &b.config.EncryptionScope}
}

func checksum(algorithm string, sum []byte) string {
	if len(sum) == 0 {
		return ""
	}
	return algorithm + ":" + base64.StdEncoding.EncodeToString(sum)
}

// state is the checkpoint of an upload in blocks. It is written once: which blocks are there, the
// other side knows better.
type state struct {
	Container string `json:"container"` // its URL
	Name      string `json:"name"`
	BlockSize int64  `json:"block_size"`
}

// begin goes on with the upload that an earlier attempt began, or begins one. existing are the
// sizes of the blocks that are there, by id.
func (b *bucket) begin(
	ctx context.Context, up *storage.Upload, c storage.Checkpoints, blockSize int64,
) (s state, existing map[string]int64, err error) {
	where := b.config.service() + "/" + b.config.Container
	if c != nil {
		found, err := c.Resume(&s)
		var syntax *json.SyntaxError
		var wrong *json.UnmarshalTypeError
		switch {
		case err != nil && !errors.As(err, &syntax) && !errors.As(err, &wrong): // else it is none of ours
			return s, nil, err
		case err == nil && found && s.fits(where, up):
			existing, err := b.blocks(ctx, up.Name)
			if err == nil {
				return s, existing, nil
			}
			if ctx.Err() != nil || handler.Classify(err).WillRetry() {
				return s, nil, err
			}
			return s, nil, nil // they may not be listed: all are sent again, under the same ids
		}
	}
	s = state{Container: where, Name: up.Name, BlockSize: blockSize}
	if c != nil {
		if err := c.Checkpoint(ctx, s); err != nil {
			return s, nil, err
		}
	}
	return s, nil, nil
}

func (s state) fits(where string, up *storage.Upload) bool {
	return s.Container == where && s.Name == up.Name && s.BlockSize >= minBlock && s.BlockSize <= 2*maxBlock &&
		(up.Size < 0 || up.Size <= s.BlockSize*maxBlocks)
}

// blocks lists what is staged and not committed.
func (b *bucket) blocks(ctx context.Context, name string) (map[string]int64, error) {
	out, err := b.client.NewBlockBlobClient(name).GetBlockList(ctx, blockblob.BlockListTypeUncommitted, nil)
	if err != nil {
		if err = b.failed(ctx, opBlocks, name, err); errors.Is(err, storage.ErrNotFound) {
			return nil, nil
		}
		return nil, err
	}
	all := map[string]int64{}
	for _, block := range out.UncommittedBlocks {
		all[value(block.Name)] = value(block.Size)
	}
	return all, nil
}

// blockID names a block by its number and its content. So a block that is there needs no further
// proof, two workers at one upload do each other no harm, and content that changed between attempts
// is never mixed. All ids of a blob must be equally long.
func blockID(n int, sum uint64) string {
	var raw [12]byte
	binary.BigEndian.PutUint32(raw[:4], uint32(n))
	binary.BigEndian.PutUint64(raw[4:], sum)
	return base64.StdEncoding.EncodeToString(raw[:])
}
