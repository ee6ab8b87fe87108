package s3

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// Put implements storage.Bucket.
func (b *bucket) Put(ctx context.Context, up *storage.Upload) (storage.Object, error) {
	return b.PutResuming(ctx, up, nil)
}

// PutResuming implements storage.Resumer.
func (b *bucket) PutResuming(ctx context.Context, up *storage.Upload, c storage.Checkpoints) (storage.Object, error) {
	partSize := b.config.partSize(up.Size)
	if !up.Once && up.Size < partSize {
		return b.putSmall(ctx, up, partSize, c)
	}
	content, err := up.Open(ctx, 0)
	if err != nil {
		return storage.Object{}, err
	}
	defer content.Close()
	return b.multipart(ctx, up, c, content, partSize)
}

// putSmall sends what fits into a part at once. It reads to the end first: only there is the
// content known to be what was accepted. What turns out to be larger, its size not known, becomes a
// multipart upload.
func (b *bucket) putSmall(
	ctx context.Context, up *storage.Upload, partSize int64, c storage.Checkpoints,
) (storage.Object, error) {
	room := partSize
	if up.Size >= 0 {
		room = up.Size + 1 // to see the end
	}
	buffer, release, err := b.handler.memory.Get(ctx, room)
	if err != nil {
		return storage.Object{}, err
	}
	held := true
	defer func() {
		if held {
			release()
		}
	}()
	content, err := up.Open(ctx, 0)
	if err != nil {
		return storage.Object{}, err
	}
	defer content.Close()
	n, end, err := storage.Fill(content, buffer)
	if err != nil {
		return storage.Object{}, err
	}
	if end && (up.Size < 0 || int64(n) == up.Size) {
		return b.putObject(ctx, up, buffer[:n])
	}
	if up.Size >= 0 {
		return storage.Object{}, handler.Fail(
			handler.Internal,
			fmt.Errorf("s3: %q: %w: its size is not %d bytes", up.Name, payload.ErrCorrupt, up.Size),
		)
	}
	// The memory is given back and the content read again: to wait for more while holding some
	// could lock uploads up.
	release()
	held = false
	_ = content.Close()
	again, err := up.Open(ctx, 0)
	if err != nil {
		return storage.Object{}, err
	}
	defer again.Close()
	return b.multipart(ctx, up, c, again, partSize)
}

func (b *bucket) putObject(ctx context.Context, up *storage.Upload, content []byte) (storage.Object, error) {
	algorithm := b.config.algorithm()
	sum := algorithm.of(content)
	body := remote.NewBody(content)
	defer body.Seal()
	in := &awss3.PutObjectInput{
		Bucket: &b.config.Bucket, Key: &up.Name, Body: body, ContentLength: aws.Int64(int64(len(content))),
		ContentType: optional(up.ContentType), Metadata: up.AllMetadata(), Tagging: tagging(up.Tags),
		ExpectedBucketOwner: b.owner(),
		StorageClass:        types.StorageClass(b.config.StorageClass),
	}
	if !up.Replace {
		in.IfNoneMatch = aws.String("*")
	}
	algorithm.put(sum, &in.ChecksumCRC32C, &in.ChecksumCRC32, &in.ChecksumSHA256)
	in.ServerSideEncryption, in.SSEKMSKeyId, in.BucketKeyEnabled = b.encryption()
	if !up.Transient {
		in.ObjectLockMode = types.ObjectLockMode(b.config.ObjectLock.Mode)
		in.ObjectLockRetainUntilDate, in.ObjectLockLegalHoldStatus = b.retention()
	}
	out, err := b.client.PutObject(ctx, in)
	if err != nil {
		return storage.Object{}, b.failed(ctx, opPut, up.Name, err)
	}
	theirs := algorithm.in(sums{out.ChecksumCRC32C, out.ChecksumCRC32, out.ChecksumSHA256})
	if theirs != "" && theirs != aws.ToString(sum) {
		return storage.Object{}, corrupt(up.Name, "the checksum differs")
	}
	up.Progress(int64(len(content)))
	return storage.Object{
		Name: up.Name, Size: int64(len(content)), URL: b.url(up.Name), SHA256: up.SHA256, Item: up.Item,
		ETag: strings.Trim(aws.ToString(out.ETag), `"`), Version: aws.ToString(out.VersionId),
		Checksum: sums{out.ChecksumCRC32C, out.ChecksumCRC32, out.ChecksumSHA256}.text(),
	}, nil
}

func (b *bucket) encryption() (kind types.ServerSideEncryption, key *string, bucketKey *bool) {
	e := b.config.Encryption
	if e.BucketKey {
		bucketKey = aws.Bool(true)
	}
	return types.ServerSideEncryption(e.Type), optional(e.KMSKeyID), bucketKey
}

func (b *bucket) retention() (until *time.Time, hold types.ObjectLockLegalHoldStatus) {
	l := b.config.ObjectLock
	if l.Mode != "" {
		until = aws.Time(b.env.Now().UTC().AddDate(0, 0, l.Days))
	}
	if l.LegalHold {
		hold = types.ObjectLockLegalHoldStatusOn
	}
	return until, hold
}

// state is the checkpoint of a multipart upload. It is written once: which parts are there, the
// other side knows better.
type state struct {
	Endpoint string `json:"endpoint,omitempty"`
	Bucket   string `json:"bucket"`
	Name     string `json:"name"`
	Upload   string `json:"upload"`
	PartSize int64  `json:"part_size"`
}

// begin goes on with the upload that an earlier attempt began, or begins one. existing are the
// parts that are there.
func (b *bucket) begin(
	ctx context.Context, up *storage.Upload, c storage.Checkpoints, partSize int64,
) (s state, existing map[int32]types.Part, err error) {
	if c != nil {
		found, err := c.Resume(&s)
		var syntax *json.SyntaxError
		var wrong *json.UnmarshalTypeError
		switch {
		case err != nil && !errors.As(err, &syntax) && !errors.As(err, &wrong): // else it is none of ours
			return s, nil, err
		case err == nil && found && b.fits(s, up):
			existing, err := b.parts(ctx, s)
			if err == nil {
				return s, existing, nil
			}
			if ctx.Err() != nil || handler.Classify(err).WillRetry() {
				return s, nil, err
			}
			// It is gone, or its parts may not be listed: begin again.
			_ = b.abort(ctx, s.Name, s.Upload)
		}
	}
	upload, err := b.create(ctx, up)
	if err != nil {
		return s, nil, err
	}
	s = state{Endpoint: b.config.Endpoint, Bucket: b.config.Bucket, Name: up.Name, Upload: upload, PartSize: partSize}
	if c != nil {
		if err := c.Checkpoint(ctx, s); err != nil {
			b.discard(ctx, s)
			return s, nil, err
		}
	}
	return s, nil, nil
}

func (b *bucket) fits(s state, up *storage.Upload) bool {
	return s.Upload != "" && s.Endpoint == b.config.Endpoint && s.Bucket == b.config.Bucket && s.Name == up.Name &&
		s.PartSize >= minPart && s.PartSize <= maxPart*2 && (up.Size < 0 || up.Size <= s.PartSize*maxParts)
}

func (b *bucket) create(ctx context.Context, up *storage.Upload) (string, error) {
	in := &awss3.CreateMultipartUploadInput{
		Bucket: &b.config.Bucket, Key: &up.Name, ContentType: optional(up.ContentType), Metadata: up.AllMetadata(),
		Tagging: tagging(up.Tags), ExpectedBucketOwner: b.owner(),
		StorageClass: types.StorageClass(b.config.StorageClass),
	}
	if algorithm := b.config.algorithm(); algorithm != nil {
		in.ChecksumAlgorithm, in.ChecksumType = algorithm.kind, types.ChecksumTypeComposite
	}
	in.ServerSideEncryption, in.SSEKMSKeyId, in.BucketKeyEnabled = b.encryption()
	in.ObjectLockMode = types.ObjectLockMode(b.config.ObjectLock.Mode)
	in.ObjectLockRetainUntilDate, in.ObjectLockLegalHoldStatus = b.retention()
	out, err := b.client.CreateMultipartUpload(ctx, in)
	if err != nil {
		return "", b.failed(ctx, opCreate, up.Name, err)
	}
	if aws.ToString(out.UploadId) == "" {
		return "", handler.Fail(
			handler.Remote, fmt.Errorf("s3: the other side began an upload of %q without an id", up.Name),
		)
	}
	return *out.UploadId, nil
}

func (b *bucket) parts(ctx context.Context, s state) (map[int32]types.Part, error) {
	all := map[int32]types.Part{}
	pages := awss3.NewListPartsPaginator(b.client, &awss3.ListPartsInput{
		Bucket: &s.Bucket, Key: &s.Name, UploadId: &s.Upload, ExpectedBucketOwner: b.owner(),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, b.failed(ctx, opParts, s.Name, err)
		}
		for _, p := range page.Parts {
			all[aws.ToInt32(p.PartNumber)] = p
		}
	}
	return all, nil
}

// discard aborts an upload that nobody goes on with, also after ctx has ended. If that fails,
// Maintain does it.
func (b *bucket) discard(ctx context.Context, s state) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := b.abort(ctx, s.Name, s.Upload); err != nil && b.env.Logger != nil {
		b.env.Logger.WarnContext(
			ctx, "s3: an unfinished upload stays", "bucket", s.Bucket, "object", s.Name, "error", err,
		)
	}
}

// multipart sends content in parts, and completes the upload when it has ended well.
func (b *bucket) multipart(
	ctx context.Context, up *storage.Upload, c storage.Checkpoints, content io.Reader, partSize int64,
) (storage.Object, error) {
	s, existing, err := b.begin(ctx, up, c, partSize)
	if err != nil {
		return storage.Object{}, err
	}
	m := &multipart{bucket: b, up: up, state: s, existing: existing, algorithm: b.config.algorithm()}
	err = m.send(ctx, content)
	var stored storage.Object
	if err == nil {
		stored, err = m.complete(ctx)
	}
	if err != nil && !errors.Is(err, handler.ErrLeaseLost) && ctx.Err() == nil &&
		(c == nil || !handler.Classify(err).WillRetry()) {
		b.discard(ctx, s)
	}
	return stored, err
}
