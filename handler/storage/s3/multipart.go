package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// multipart is one upload under way.
type multipart struct {
	bucket    *bucket
	up        *storage.Upload
	state     state
	existing  map[int32]types.Part
	algorithm *algorithm

	mu    sync.Mutex
	parts []types.CompletedPart
	done  int64
}

// send reads content, and sends the parts that are not there yet, several at a time. The content is
// read from its start also when an upload goes on: so its hash is verified, and a part counts as
// there only if its checksum says so. Where the content breaks off, what was read of it is still
// sent: the next attempt has it, and no part arrives after an abort, which some servers take for a
// new upload.
func (m *multipart) send(ctx context.Context, content io.Reader) error {
	group, sending := errgroup.WithContext(ctx)
	group.SetLimit(m.bucket.config.parallel())
	err := m.read(sending, content, func(part int32, b []byte, sum *string, release func()) {
		group.Go(func() error {
			defer release()
			return m.sendPart(sending, part, b, sum)
		})
	})
	return cmp.Or(err, group.Wait()) // where a part failed first, err is its error
}

// read hands each part that is to be sent to start, with memory that release gives back.
func (m *multipart) read(
	ctx context.Context, content io.Reader, start func(part int32, b []byte, sum *string, release func()),
) error {
	var size int64
	for part := int32(1); ; part++ {
		if part > maxParts {
			return handler.Fail(handler.Validation, fmt.Errorf(
				"s3: %q has more than %d parts of %d bytes; give the destination a larger part_size", m.up.Name,
				maxParts, m.state.PartSize,
			))
		}
		b, release, err := m.bucket.handler.memory.Get(ctx, m.state.PartSize)
		if err != nil {
			return err
		}
		n, end, err := storage.Fill(storage.WithContext(ctx, content), b)
		size += int64(n)
		if err == nil && end && m.up.Size >= 0 && size != m.up.Size {
			err = handler.Fail(
				handler.Internal,
				fmt.Errorf("s3: %q: %w: %d of %d bytes", m.up.Name, payload.ErrCorrupt, size, m.up.Size),
			)
		}
		if err != nil {
			release()
			return err
		}
		if n == 0 && part > 1 {
			release()
			return nil
		}
		b = b[:n]
		sum := m.algorithm.of(b)
		if there, ok := m.existing[part]; ok && m.algorithm.holds(there, b, sum) {
			release()
			m.add(part, there.ETag, sum, int64(n))
		} else {
			start(part, b, sum, release)
		}
		if end {
			return nil
		}
	}
}

func (m *multipart) sendPart(ctx context.Context, part int32, b []byte, sum *string) error {
	body := remote.NewBody(b)
	defer body.Seal()
	in := &awss3.UploadPartInput{
		Bucket: &m.state.Bucket, Key: &m.state.Name, UploadId: &m.state.Upload, PartNumber: &part,
		Body: body, ContentLength: aws.Int64(int64(len(b))), ExpectedBucketOwner: m.bucket.owner(),
	}
	m.algorithm.put(sum, &in.ChecksumCRC32C, &in.ChecksumCRC32, &in.ChecksumSHA256)
	out, err := m.bucket.client.UploadPart(ctx, in)
	if noSuchUpload(err) {
		return handler.Fail(
			handler.Remote,
			fmt.Errorf(
				"s3: the upload of %q was ended by somebody else; the next attempt begins again, unless the "+
					"object is there",
				m.up.Name,
			),
		)
	}
	if err != nil {
		return m.bucket.failed(ctx, opPart, m.up.Name, err)
	}
	theirs := m.algorithm.in(sums{out.ChecksumCRC32C, out.ChecksumCRC32, out.ChecksumSHA256})
	if theirs != "" && theirs != aws.ToString(sum) {
		return corrupt(m.up.Name, fmt.Sprintf("the checksum of part %d differs", part))
	}
	m.add(part, out.ETag, sum, int64(len(b)))
	return nil
}

func (m *multipart) add(part int32, etag, sum *string, size int64) {
	p := types.CompletedPart{PartNumber: aws.Int32(part), ETag: etag}
	m.algorithm.put(sum, &p.ChecksumCRC32C, &p.ChecksumCRC32, &p.ChecksumSHA256)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parts = append(m.parts, p)
	m.done += size
	m.up.Progress(m.done)
}

func (m *multipart) complete(ctx context.Context) (storage.Object, error) {
	slices.SortFunc(m.parts, func(a, b types.CompletedPart) int { return int(*a.PartNumber - *b.PartNumber) })
	in := &awss3.CompleteMultipartUploadInput{
		Bucket: &m.state.Bucket, Key: &m.state.Name, UploadId: &m.state.Upload, ExpectedBucketOwner: m.bucket.owner(),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: m.parts},
	}
	if !m.up.Replace {
		in.IfNoneMatch = aws.String("*")
	}
	out, err := m.bucket.client.CompleteMultipartUpload(ctx, in)
	if noSuchUpload(err) {
		// Another attempt has completed it, or this one has and its answer was lost: the object
		// tells.
		return storage.Object{}, handler.Fail(
			handler.Remote, fmt.Errorf("s3: the upload of %q is ended: %w", m.up.Name, storage.ErrExists),
		)
	}
	if err != nil {
		return storage.Object{}, m.bucket.failed(ctx, opComplete, m.up.Name, err)
	}
	stored := storage.Object{
		Name: m.up.Name, Size: m.done, URL: m.bucket.url(m.up.Name), SHA256: m.up.SHA256, Item: m.up.Item,
		ETag: strings.Trim(aws.ToString(out.ETag), `"`), Version: aws.ToString(out.VersionId),
		Checksum: sums{out.ChecksumCRC32C, out.ChecksumCRC32, out.ChecksumSHA256}.text(),
	}
	return m.verify(ctx, stored, m.algorithm.in(sums{out.ChecksumCRC32C, out.ChecksumCRC32, out.ChecksumSHA256}))
}

// verify compares the checksum of the whole with what was sent, asking for it where the answer did
// not have it, and the size. Where it cannot be had, the checksums of the parts have to do.
func (m *multipart) verify(ctx context.Context, stored storage.Object, theirs string) (storage.Object, error) {
	if theirs == "" {
		found, err := m.bucket.Stat(ctx, m.up.Name)
		if err != nil {
			return stored, nil //nolint:nilerr // it is stored: that it cannot be looked at is no failure
		}
		if found.Size != m.done {
			return storage.Object{}, corrupt(m.up.Name, fmt.Sprintf("it has %d of %d bytes", found.Size, m.done))
		}
		stored.Checksum = found.Checksum
		theirs, _ = strings.CutPrefix(found.Checksum, m.algorithm.label()+":")
	}
	ours := m.algorithm.composite(m.parts)
	if theirs != "" && strings.Contains(theirs, "-") && ours != "" && theirs != ours {
		return storage.Object{}, corrupt(m.up.Name, "the checksum of the whole differs")
	}
	return stored, nil
}

func (a *algorithm) label() string {
	if a == nil {
		return "none"
	}
	return a.name
}

func noSuchUpload(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == "NoSuchUpload"
}

func tagging(tags map[string]string) *string {
	if len(tags) == 0 {
		return nil
	}
	all := url.Values{}
	for key, value := range tags {
		all.Set(key, value)
	}
	return aws.String(all.Encode())
}
