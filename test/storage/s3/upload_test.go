package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery/test/internal/uploads"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload"
)

const mib = 1 << 20

func throughFront(f *uploads.Front, bucket string) s3.Config {
	c := config(bucket)
	c.Endpoint, c.PartSize, c.Parallel = f.URL, 5*mib, 2
	c.Naming = storage.Naming{Name: "{item}"}
	return c
}

func TestMultipart(t *testing.T) {
	t.Parallel()
	for _, checksum := range []string{"", "crc32", "sha256", "none"} {
		t.Run("checksum "+checksum, func(t *testing.T) {
			t.Parallel()
			bucket := newBucket(t, false)
			f := newFront(t)
			c := throughFront(f, bucket)
			c.Checksum = checksum
			for _, size := range []int{5 * mib, 10 * mib, 11*mib + 1} {
				for _, known := range []bool{true, false} {
					sent := uploads.Random(size)
					h := s3.New()
					req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
					if !known {
						inner := req.Payload
						req.Payload = payload.NewContent(payload.Info{Size: -1}, inner.OpenAt)
					}
					x := &uploads.Transfer{}
					req.Transfer = x
					result, err := h.Deliver(t.Context(), req)
					if err != nil {
						t.Fatalf("%d, %t: %v", size, known, err)
					}
					if got := object(t, bucket, req.ItemID); !bytes.Equal(got, sent) {
						t.Errorf("%d, %t: %d bytes came", size, known, len(got))
					}
					done, saves := x.Seen()
					if !slices.IsSorted(done) || done[len(done)-1] != int64(size) {
						t.Errorf("progress %v", done)
					}
					if saves != 1 && size > 5*mib {
						t.Errorf("%d checkpoints", saves)
					}
					d := result.Reference.Details
					if d["etag"] == "" || (checksum != "none" && d["checksum"] == "") || !strings.HasSuffix(result.Reference.URL, "/"+bucket+"/"+req.ItemID) {
						t.Errorf("%+v", result.Reference)
					}
					// As after a lost answer.
					req.Attempt = 2
					if result, err = h.Deliver(t.Context(), req); err != nil || result.Notes["existing"] == "" {
						t.Errorf("again: %+v, %v", result, err)
					}
				}
			}
			if n := unfinished(t, bucket); n != 0 {
				t.Errorf("%d uploads are left", n)
			}
		})
	}
}

// An upload breaks off; the next attempt, in another process, sends what is missing and no more.
func TestResume(t *testing.T) {
	t.Parallel()
	for _, checksum := range []string{"", "sha256", "none"} {
		t.Run("checksum "+checksum, func(t *testing.T) {
			t.Parallel()
			bucket := newBucket(t, false)
			f := newFront(t)
			c := throughFront(f, bucket)
			c.Checksum, c.Parallel = checksum, 1
			sent := uploads.Random(28 * mib) // 6 parts
			h := s3.New()
			req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
			x := &uploads.Transfer{}
			req.Transfer = x
			f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
				if operation == "UploadPart" && n > 4 {
					w.WriteHeader(http.StatusInternalServerError)
					return true
				}
				return false
			})
			_, err := h.Deliver(t.Context(), req)
			if e := handler.Classify(err); err == nil || e.Category != handler.Remote || !e.WillRetry() {
				t.Fatalf("%v", err)
			}
			if object(t, bucket, req.ItemID) != nil || unfinished(t, bucket) != 1 {
				t.Fatal("half an object can be seen, or the upload is gone")
			}

			f.Reset(nil)
			other := s3.New()
			handlertest.Open(t, other)
			req.Attempt = 2
			if _, err := other.Deliver(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			if n, size := f.Count("UploadPart"); n != 2 || size != 8*mib {
				t.Errorf("%d parts of %d bytes were sent, want the 2 that were missing", n, size)
			}
			if n, _ := f.Count("Create"); n != 0 {
				t.Error("another upload was begun")
			}
			if !bytes.Equal(object(t, bucket, req.ItemID), sent) || unfinished(t, bucket) != 0 {
				t.Error("the object differs, or the upload is left")
			}
		})
	}
}

// What changed between the attempts is sent again.
func TestResumeWithAnotherContent(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, false)
	f := newFront(t)
	c := throughFront(f, bucket)
	c.Parallel = 1
	h := s3.New()
	sent := uploads.Random(16 * mib)
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{}
	f.Reset(func(operation string, _ int, w http.ResponseWriter) bool {
		if operation == "Complete" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		return operation == "Complete"
	})
	if _, err := h.Deliver(t.Context(), req); err == nil {
		t.Fatal("delivered")
	}
	f.Reset(nil)
	changed := bytes.Clone(sent)
	changed[7*mib]++
	req.Payload, req.Attempt = handlertest.Content(t, payload.Bytes("large.bin", changed)), 2
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if n, _ := f.Count("UploadPart"); n != 1 {
		t.Errorf("%d parts were sent, want the one that changed", n)
	}
	if !bytes.Equal(object(t, bucket, req.ItemID), changed) {
		t.Error("the object is a mixture")
	}
}

// The upload that the checkpoint names is gone, is another's, or the checkpoint is none.
func TestUselessCheckpoints(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, false)
	f := newFront(t)
	c := throughFront(f, bucket)
	sent := uploads.Random(6 * mib)
	for name, checkpoint := range map[string]string{
		"gone":         `{"endpoint":"` + f.URL + `","bucket":"` + bucket + `","name":"ITEM","upload":"1b4e28ba-2fa1-11d2-883f-0016d3cca427","part_size":5242880}`,
		"other bucket": `{"endpoint":"` + f.URL + `","bucket":"other","name":"ITEM","upload":"x","part_size":5242880}`,
		"another's":    `{"offset":17}`,
		"wrong shape":  `[1,2,3]`,
		"no JSON":      `{`,
	} {
		h := s3.New()
		req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
		req.Transfer, req.Attempt = uploads.NewTransfer(strings.ReplaceAll(checkpoint, "ITEM", req.ItemID)), 2
		if _, err := h.Deliver(t.Context(), req); err != nil || !bytes.Equal(object(t, bucket, req.ItemID), sent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A lost lease ends the attempt before anything is sent, and leaves nothing.
	h := s3.New()
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{Fail: handler.ErrLeaseLost}
	f.Reset(nil)
	if _, err := h.Deliver(t.Context(), req); !errors.Is(err, handler.ErrLeaseLost) {
		t.Error(err)
	}
	if n, _ := f.Count("UploadPart"); n != 0 || unfinished(t, bucket) != 0 {
		t.Errorf("%d parts were sent, %d uploads are left", n, unfinished(t, bucket))
	}
}

// Complete did its work and its answer was lost: the item is delivered, by this attempt.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, false)
	f := newFront(t)
	c := throughFront(f, bucket)
	h := s3.New()
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", uploads.Random(6*mib)))
	req.Transfer = &uploads.Transfer{}
	var once sync.Once
	f.Reset(func(operation string, _ int, w http.ResponseWriter) bool {
		lost := false
		if operation == "Complete" {
			once.Do(func() {
				lost = true
				out, err := admin().ListMultipartUploads(context.Background(), &awss3.ListMultipartUploadsInput{Bucket: &bucket})
				if err != nil || len(out.Uploads) != 1 {
					t.Error("no upload to complete", err)
					return
				}
				completeAsIs(t, bucket, aws.ToString(out.Uploads[0].Key), aws.ToString(out.Uploads[0].UploadId))
				w.WriteHeader(http.StatusBadGateway)
			})
		}
		return lost
	})
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	versions, err := admin().ListObjectVersions(t.Context(), &awss3.ListObjectVersionsInput{Bucket: &bucket})
	if err != nil || len(versions.Versions) != 1 {
		t.Errorf("%d versions of one object, %v", len(versions.Versions), err)
	}
}

func completeAsIs(t *testing.T, bucket, key, upload string) {
	t.Helper()
	listed, err := admin().ListParts(context.Background(), &awss3.ListPartsInput{Bucket: &bucket, Key: &key, UploadId: &upload})
	if err != nil {
		t.Error(err)
		return
	}
	var parts []types.CompletedPart
	for _, p := range listed.Parts {
		parts = append(parts, types.CompletedPart{PartNumber: p.PartNumber, ETag: p.ETag, ChecksumCRC32C: p.ChecksumCRC32C})
	}
	_, err = admin().CompleteMultipartUpload(context.Background(), &awss3.CompleteMultipartUploadInput{
		Bucket: &bucket, Key: &key, UploadId: &upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		t.Error(err)
	}
}

// Two workers hold the same item, as when a lease was lost: one object, and both find it right.
func TestTwoWorkers(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, false)
	c := config(bucket)
	c.PartSize = 5 * mib
	c.Naming = storage.Naming{Name: "{item}"}
	for _, size := range []int{1000, 12 * mib} {
		sent := uploads.Random(size)
		h := s3.New()
		base := handlertest.Request(t, h, c, payload.Bytes("x.bin", sent))
		x := &uploads.Transfer{}
		base.Transfer = x
		var group sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			req := *base
			group.Go(func() { _, errs[i] = h.Deliver(t.Context(), &req) })
		}
		group.Wait()
		for _, err := range errs {
			if e := handler.Classify(err); err != nil && !e.WillRetry() {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		base.Attempt = 2
		if _, err := h.Deliver(t.Context(), base); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(object(t, bucket, base.ItemID), sent) {
			t.Error("the object differs")
		}
	}
	versions, err := admin().ListObjectVersions(t.Context(), &awss3.ListObjectVersionsInput{Bucket: &bucket})
	if err != nil || len(versions.Versions) != 2 {
		t.Errorf("%d versions of two objects, %v", len(versions.Versions), err)
	}
}

func TestConflict(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, false)
	c := config(bucket)
	c.PartSize = 5 * mib
	c.Naming = storage.Naming{Name: "fixed"}
	first := uploads.Random(6 * mib)
	deliver := func(b []byte, replace bool) error {
		c := c
		if replace {
			c.IfExists = storage.Replace
		}
		h := s3.New()
		_, err := h.Deliver(t.Context(), handlertest.Request(t, h, c, payload.Bytes("x", b)))
		return err
	}
	if err := deliver(first, false); err != nil {
		t.Fatal(err)
	}
	if err := deliver(first, false); err != nil {
		t.Errorf("the same content: %v", err)
	}
	for _, other := range [][]byte{[]byte("small"), first[1:], append(bytes.Clone(first[1:]), 1)} {
		err := deliver(other, false)
		if e := handler.Classify(err); err == nil || e.Category != handler.Conflict || e.WillRetry() {
			t.Errorf("%d other bytes: %v", len(other), err)
		}
	}
	if !bytes.Equal(object(t, bucket, "fixed"), first) {
		t.Error("was replaced")
	}
	if err := deliver([]byte("small"), true); err != nil || string(object(t, bucket, "fixed")) != "small" {
		t.Errorf("not replaced: %v", err)
	}
	if n := unfinished(t, bucket); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}

// A payload that breaks off leaves its upload, with all that was read, to go on with; one that can
// never be read leaves nothing.
func TestBrokenPayload(t *testing.T) {
	t.Parallel()
	sent := uploads.Random(12 * mib)
	for _, cause := range []struct {
		err  error
		left int
	}{{handler.Permanent(errors.New("gone for good")), 0}, {errors.New("away"), 1}} {
		bucket := newBucket(t, false)
		f := newFront(t)
		h := s3.New()
		req := handlertest.Request(t, h, throughFront(f, bucket), payload.JSON(1))
		req.Transfer = &uploads.Transfer{}
		req.Payload = payload.NewContent(payload.Info{Name: "x", Size: int64(len(sent))}, func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(sent[:11*mib]), failing{cause.err})), nil
		})
		_, err := h.Deliver(t.Context(), req)
		if err == nil || !errors.Is(err, cause.err) {
			t.Fatal(err)
		}
		if left, stored := unfinished(t, bucket), len(objects(t, bucket)); left != cause.left || stored != 0 {
			t.Errorf("%v: %d uploads and %d objects are left", cause.err, left, stored)
		}
		if n, size := f.Count("UploadPart"); n != 2 || size != 10*mib {
			t.Errorf("%v: %d parts of %d bytes were sent, want the 2 that were whole", cause.err, n, size)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestMaintainAbortsOnlyOurs(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, false)
	c := config(bucket)
	c.Naming = storage.Naming{Name: "in/{item}"}
	begin := func(key string) {
		if _, err := admin().CreateMultipartUpload(t.Context(), &awss3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
	begin("in/0199c1b2-7d1e-7000-8000-0123456789ab-0")
	begin("in/theirs.csv")
	begin("elsewhere/0199c1b2-7d1e-7000-8000-0123456789ab-0")
	maintain := func(c s3.Config, after time.Duration) {
		h := s3.New()
		env := handlertest.Env(t)
		env.Now = func() time.Time { return time.Now().Add(after) }
		if err := h.Open(env); err != nil {
			t.Fatal(err)
		}
		parsed, _ := handlertest.Parse(t, h, c)
		if err := h.Maintain(t.Context(), &handler.MaintainRequest{Organization: "acme", DestinationID: "d", Config: parsed}); err != nil {
			t.Fatal(err)
		}
	}
	maintain(c, 6*24*time.Hour)
	if n := unfinished(t, bucket); n != 3 {
		t.Errorf("after 6 days %d are left", n)
	}
	fixed := c
	fixed.Naming.Name = "in/{file}"
	maintain(fixed, 30*24*time.Hour)
	if n := unfinished(t, bucket); n != 3 {
		t.Errorf("a template without an id: %d are left", n)
	}
	maintain(c, 8*24*time.Hour)
	if n := unfinished(t, bucket); n != 2 {
		t.Errorf("after 8 days %d are left", n)
	}
}
