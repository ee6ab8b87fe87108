package gcs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	gcstorage "cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// resource is as much of an object in JSON as an upload needs:
// https://docs.cloud.google.com/storage/docs/json_api/v1/objects#resource
type resource struct {
	Name           string            `json:"name,omitempty"`
	ContentType    string            `json:"contentType,omitempty"`
	StorageClass   string            `json:"storageClass,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`
	Retention      *retention        `json:"retention,omitempty"`
	TemporaryHold  bool              `json:"temporaryHold,omitempty"`
	EventBasedHold bool              `json:"eventBasedHold,omitempty"`

	// Of the answer.
	Size       int64  `json:"size,string,omitempty"`
	Generation int64  `json:"generation,string,omitempty"`
	ETag       string `json:"etag,omitempty"`
	CRC32C     string `json:"crc32c,omitempty"`
}

type retention struct {
	Mode            string    `json:"mode"`
	RetainUntilTime time.Time `json:"retainUntilTime"`
}

// state is the checkpoint of a resumable upload. It is written once: how far it got, the other side
// knows better.
type state struct {
	Bucket  string `json:"bucket"`
	Name    string `json:"name"`
	Session string `json:"session"`
	SHA256  string `json:"sha256,omitempty"` // of the content, where it was known
}

// session is a resumable upload under way.
type session struct {
	bucket *bucket
	up     *storage.Upload
	state  state
	offset int64     // how much the other side has
	done   *resource // the object, where the other side has all of it
}

// errEnded says that a session is gone: completed, cancelled or too old.
var errEnded = errors.New("gcs: the upload's session is gone")

// putResumable sends content chunk by chunk. The content is read from its start also when an upload
// goes on: so its hash is verified, and the checksum of the whole is sent with the last chunk,
// before which nobody sees the object.
func (b *bucket) putResumable(ctx context.Context, up *storage.Upload, c storage.Checkpoints) (storage.Object, error) {
	opened, err := up.Open(ctx, 0)
	if err != nil {
		return storage.Object{}, err
	}
	defer opened.Close()
	s, err := b.begin(ctx, up, c)
	if err != nil {
		return storage.Object{}, err
	}
	sum := crc32.New(castagnoli)
	content := bufio.NewReaderSize(io.TeeReader(storage.WithContext(ctx, opened), sum), 64<<10)
	size, err := s.send(ctx, content, func() uint32 { return sum.Sum32() })
	if err == nil {
		return s.verify(ctx, size, sum.Sum32())
	}
	if ctx.Err() == nil && !errors.Is(err, handler.ErrLeaseLost) &&
		(c == nil || errors.Is(err, errMismatch) || !handler.Classify(err).WillRetry()) {
		s.cancel(ctx)
	}
	return storage.Object{}, err
}

// begin goes on with the upload that an earlier attempt began, or begins one.
func (b *bucket) begin(ctx context.Context, up *storage.Upload, c storage.Checkpoints) (*session, error) {
	if c != nil {
		if s, err := b.resume(ctx, up, c); s != nil || err != nil {
			return s, err
		}
	}
	s := &session{bucket: b, up: up}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	if c != nil {
		if err := c.Checkpoint(ctx, s.state); err != nil {
			s.cancel(ctx)
			return nil, err
		}
	}
	return s, nil
}

// resume returns the session of the checkpoint, or nil where there is none to go on with.
func (b *bucket) resume(ctx context.Context, up *storage.Upload, c storage.Checkpoints) (*session, error) {
	s := &session{bucket: b, up: up}
	found, err := c.Resume(&s.state)
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &syntax) || errors.As(err, &wrong) {
		return nil, nil //nolint:nilnil // it is not a checkpoint of this package
	}
	if err != nil {
		return nil, err
	}
	if !found || !s.fits() {
		return nil, nil //nolint:nilnil // of another object
	}
	err = s.query(ctx)
	if err == nil {
		return s, nil
	}
	if errors.Is(err, errEnded) {
		return nil, nil //nolint:nilnil // there is nothing to go on with
	}
	if err = b.failed(ctx, opResume, up.Name, err); ctx.Err() != nil || handler.Classify(err).WillRetry() {
		return nil, err
	}
	return nil, nil //nolint:nilnil // as above
}

// fits says whether the checkpoint is of this object, and its address one that our tokens may be
// sent to.
func (s *session) fits() bool {
	return s.state.Bucket == s.bucket.config.Bucket && s.state.Name == s.up.Name && s.state.SHA256 == s.up.SHA256 &&
		s.bucket.ours(s.state.Session)
}

func (b *bucket) ours(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	service, err := url.Parse(b.config.service())
	return err == nil && u.Scheme == service.Scheme && u.Host == service.Host && u.User == nil
}

func (s *session) start(ctx context.Context) error {
	b, up := s.bucket, s.up
	described := resource{
		Name: up.Name, ContentType: up.ContentType, StorageClass: b.config.StorageClass, Metadata: up.AllMetadata(),
	}
	if !up.Transient {
		if until := b.retainUntil(); !until.IsZero() {
			described.Retention = &retention{Mode: b.config.Retention.Mode, RetainUntilTime: until}
		}
		described.TemporaryHold = b.config.Retention.Hold == "temporary"
		described.EventBasedHold = b.config.Retention.Hold == "event_based"
	}
	body, err := json.Marshal(described)
	if err != nil {
		return err
	}
	q := url.Values{"uploadType": {"resumable"}, "name": {up.Name}}
	if !up.Replace {
		q.Set("ifGenerationMatch", "0")
	}
	if b.config.KMSKey != "" {
		q.Set("kmsKeyName", b.config.KMSKey)
	}
	address := b.config.service() + "/upload/storage/v1/b/" + url.PathEscape(b.config.Bucket) + "/o?" + q.Encode()
	header := http.Header{"Content-Type": {"application/json; charset=utf-8"}}
	if up.ContentType != "" {
		header.Set("X-Upload-Content-Type", up.ContentType)
	}
	var out answer
	for try := range tries {
		if !wait(ctx, try) {
			break
		}
		out, err = s.call(ctx, http.MethodPost, address, header, bytes.NewReader(body), int64(len(body)))
		if !again(err) {
			break
		}
	}
	if err != nil {
		return b.failed(ctx, opStart, up.Name, err)
	}
	s.state = state{Bucket: b.config.Bucket, Name: up.Name, Session: out.header.Get("Location"), SHA256: up.SHA256}
	if !b.ours(s.state.Session) {
		return handler.Fail(
			handler.Remote,
			fmt.Errorf("gcs: the other side began an upload of %q without an address of its own for it", up.Name),
		)
	}
	return nil
}

// answer is what came to a request.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// call makes a request, and reads its answer: an error unless that is a success or, for a session,
// "go on" (308).
func (s *session) call(
	ctx context.Context, method, address string, header http.Header, body io.Reader, length int64,
) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return answer{}, err
	}
	r.ContentLength = length
	if length == 0 {
		r.Body = http.NoBody
	}
	if header != nil {
		r.Header = header
	}
	out, err := s.bucket.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer out.Body.Close()
	a := answer{status: out.StatusCode, header: out.Header}
	if a.status == http.StatusPermanentRedirect && method == http.MethodPut {
		return a, nil
	}
	if err := googleapi.CheckResponse(out); err != nil {
		return answer{}, err
	}
	a.body, err = io.ReadAll(io.LimitReader(out.Body, 1<<20))
	return a, err
}

// query asks how much the other side has.
func (s *session) query(ctx context.Context) (err error) {
	for try := range tries {
		if !wait(ctx, try) {
			break
		}
		var out answer
		out, err = s.call(ctx, http.MethodPut, s.state.Session, http.Header{"Content-Range": {"bytes */*"}}, nil, 0)
		if err == nil {
			return s.moved(out)
		}
		if !again(err) {
			break
		}
	}
	return s.ended(err)
}

// ended makes errEnded of the answers that say so.
func (s *session) ended(err error) error {
	var e *googleapi.Error
	if errors.As(err, &e) && (e.Code == http.StatusNotFound || e.Code == http.StatusGone || e.Code == 499) {
		return errEnded
	}
	return err
}

// moved takes in how far the other side says it got.
func (s *session) moved(out answer) error {
	if out.status != http.StatusPermanentRedirect {
		s.done = &resource{}
		if err := json.Unmarshal(out.body, s.done); err != nil {
			return fmt.Errorf("gcs: the other side's answer cannot be read: %w", err)
		}
		s.offset = s.done.Size
		return nil
	}
	s.offset = 0
	if r := out.header.Get("Range"); r != "" {
		last, err := strconv.ParseInt(strings.TrimPrefix(r, "bytes=0-"), 10, 64)
		if err != nil || last < 0 || !strings.HasPrefix(r, "bytes=0-") {
			return fmt.Errorf("gcs: the other side says that it has %q, which cannot be read", s.bucket.redact.Line(r))
		}
		s.offset = last + 1
	}
	return nil
}

// send reads content, and sends what the other side has not.
func (s *session) send(ctx context.Context, content *bufio.Reader, sum func() uint32) (size int64, err error) {
	buffer, release, err := s.bucket.handler.memory.Get(ctx, s.bucket.config.chunkSize())
	if err != nil {
		return 0, err
	}
	defer release()
	for end := false; !end; {
		var n int
		if n, end, err = storage.Fill(content, buffer); err != nil {
			return size, err
		}
		if !end { // there may be no more: only the last chunk may say how much there is
			_, err = content.Peek(1)
			if end = err == io.EOF; !end && err != nil { //nolint:errorlint // io.EOF is the end only when bare
				return size, err
			}
		}
		start := size
		size += int64(n)
		if end && s.up.Size >= 0 && size != s.up.Size {
			return size, handler.Fail(
				handler.Internal,
				fmt.Errorf("gcs: %q: %w: %d of %d bytes", s.up.Name, payload.ErrCorrupt, size, s.up.Size),
			)
		}
		if s.done == nil && (size > s.offset || end) {
			if err := s.sendChunk(ctx, buffer[:n], start, end, sum); err != nil {
				return size, err
			}
		}
		s.up.Progress(min(size, s.offset))
	}
	return size, nil
}

var errMismatch = errors.New("the other side has another content")

// sendChunk sends what the other side has not of a chunk that starts at an offset. It may take only
// a part of it, so it is asked after each failure.
func (s *session) sendChunk(ctx context.Context, chunk []byte, start int64, end bool, sum func() uint32) (err error) {
	stop := start + int64(len(chunk))
	for try := 0; s.done == nil && (s.offset < stop || end); {
		if s.offset < start || s.offset > stop {
			return s.failed(
				ctx,
				handler.Fail(
					handler.Remote,
					fmt.Errorf(
						"gcs: the other side has %d bytes of %q, and is being sent those from %d: %w", s.offset,
						s.up.Name, start, errMismatch,
					),
				),
			)
		}
		before := s.offset
		if err = s.put(ctx, chunk[s.offset-start:], end, sum); err == nil {
			if s.done == nil && s.offset == before {
				err = errors.New("gcs: the other side takes nothing")
			} else {
				continue
			}
		}
		if try++; try >= tries || !again(err) || !wait(ctx, try) {
			return s.failed(ctx, err)
		}
		if queryErr := s.query(ctx); queryErr != nil {
			return s.failed(ctx, queryErr)
		}
	}
	return nil
}

func (s *session) put(ctx context.Context, b []byte, end bool, sum func() uint32) error {
	first, last, total := s.offset, s.offset+int64(len(b))-1, "*"
	header := http.Header{}
	if end {
		total = strconv.FormatInt(last+1, 10)
		header.Set("X-Goog-Hash", "crc32c="+encode(sum()))
	}
	if len(b) == 0 {
		header.Set("Content-Range", "bytes */"+total)
	} else {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", first, last, total))
	}
	body := remote.NewBody(b)
	defer body.Seal()
	out, err := s.call(ctx, http.MethodPut, s.state.Session, header, body, int64(len(b)))
	if err != nil {
		return s.ended(err)
	}
	return s.moved(out)
}

func (s *session) failed(ctx context.Context, err error) error {
	if errors.Is(err, errEnded) && ctx.Err() == nil {
		// Another attempt has completed it, or somebody has cancelled it: the object tells.
		if s.up.Replace {
			return handler.Fail(
				handler.Remote,
				fmt.Errorf(
					"gcs: the upload of %q is ended; the next attempt begins again, unless the object is there",
					s.up.Name,
				),
			)
		}
		return handler.Fail(
			handler.Remote, fmt.Errorf("gcs: the upload of %q is ended: %w", s.up.Name, storage.ErrExists),
		)
	}
	return s.bucket.failed(ctx, opChunk, s.up.Name, err)
}

// verify compares what the other side made of the content with what was sent. Where it took another
// content for the right one, because it verifies no checksum or had the beginning of another, that
// object is removed.
func (s *session) verify(ctx context.Context, size int64, sum uint32) (storage.Object, error) {
	b, o := s.bucket, s.done
	if o.Size != size || o.CRC32C != "" && o.CRC32C != encode(sum) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if o.Generation != 0 {
			// Where this fails, the next attempt finds a conflict.
			_ = b.client.Object(s.up.Name).If(gcstorage.Conditions{GenerationMatch: o.Generation}).Delete(ctx)
		}
		return storage.Object{}, corrupt(
			s.up.Name,
			fmt.Sprintf(
				"%d bytes of CRC-32C %s, where %d of %s were sent", o.Size, b.redact.Line(o.CRC32C), size,
				encode(sum),
			),
		)
	}
	return storage.Object{
		Name: s.up.Name, Size: size, URL: b.url(s.up.Name), SHA256: s.up.SHA256, Item: s.up.Item, ETag: o.ETag,
		Version: strconv.FormatInt(o.Generation, 10), Checksum: "crc32c:" + encode(sum),
	}, nil
}

// cancel ends an upload that nobody goes on with, also after ctx has ended. If that fails, the
// service does it in a week.
func (s *session) cancel(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, _ = s.call(ctx, http.MethodDelete, s.state.Session, nil, nil, 0) // answered with 499
}
