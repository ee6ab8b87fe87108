package s3_test

import (
	"net/http"
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

// What a config asks for is on the object, whether it was sent at once or in parts.
func TestAttributes(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, true)
	c := config(bucket)
	c.PartSize = 5 * mib
	c.Naming = storage.Naming{Name: "{item}"}
	c.Attributes = storage.Attributes{ContentType: "text/csv", Metadata: map[string]string{"Team": "exports"}, Tags: map[string]string{"kind": "a b+c"}}
	c.ObjectLock = s3.ObjectLock{Mode: "GOVERNANCE", Days: 3, LegalHold: true}
	for _, size := range []int{100, 6 * mib} {
		h := s3.New()
		req := handlertest.Request(t, h, c, payload.Bytes("x.bin", uploads.Random(size)))
		result, err := h.Deliver(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		head, err := admin().HeadObject(t.Context(), &awss3.HeadObjectInput{Bucket: &bucket, Key: &req.ItemID})
		if err != nil {
			t.Fatal(err)
		}
		if aws.ToString(head.ContentType) != "text/csv" || head.Metadata["team"] != "exports" ||
			head.Metadata[storage.MetadataItem] != req.ItemID || head.Metadata[storage.MetadataSHA256] != req.Payload.Info().SHA256 {
			t.Errorf("%d: %s, %v", size, aws.ToString(head.ContentType), head.Metadata)
		}
		days := time.Until(aws.ToTime(head.ObjectLockRetainUntilDate)).Hours() / 24
		if head.ObjectLockMode != types.ObjectLockModeGovernance || days < 2.9 || days > 3.1 || head.ObjectLockLegalHoldStatus != types.ObjectLockLegalHoldStatusOn {
			t.Errorf("%d: lock %s for %.1f days, legal hold %s", size, head.ObjectLockMode, days, head.ObjectLockLegalHoldStatus)
		}
		if v := result.Reference.Details["version"]; v == "" || v != aws.ToString(head.VersionId) {
			t.Errorf("%d: version %q, want %q", size, v, aws.ToString(head.VersionId))
		}
		tags, err := admin().GetObjectTagging(t.Context(), &awss3.GetObjectTaggingInput{Bucket: &bucket, Key: &req.ItemID})
		if err != nil || len(tags.TagSet) != 1 || aws.ToString(tags.TagSet[0].Key) != "kind" || aws.ToString(tags.TagSet[0].Value) != "a b+c" {
			t.Errorf("%d: %v, %v", size, tags, err)
		}
	}
	// The canary has no retention, and is gone.
	h := s3.New()
	handlertest.Open(t, h)
	parsed, _ := handlertest.Parse(t, h, c)
	report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: parsed})
	if err != nil || !report.OK {
		t.Errorf("%+v, %v", report, err)
	}
	if all := objects(t, bucket); len(all) != 2 {
		t.Errorf("%q", all)
	}
}

// What is not told by the server's answer but by the request.
func TestRequestHeaders(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 10)
	f := newFront(t)
	inner := f.Config.Handler
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		inner.ServeHTTP(w, r)
	})
	c := throughFront(f, newBucket(t, false))
	c.StorageClass, c.BucketOwner = "STANDARD_IA", "123456789012"
	c.Encryption = s3.Encryption{Type: "aws:kms", KMSKeyID: "alias/exports", BucketKey: true}
	h := s3.New()
	// The gateway has no keys; what counts is what it was asked for.
	_, _ = h.Deliver(t.Context(), handlertest.Request(t, h, c, payload.JSON(1)))
	header := <-seen
	for name, want := range map[string]string{
		"X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Expected-Bucket-Owner": "123456789012", "X-Amz-Server-Side-Encryption": "aws:kms",
		"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "alias/exports", "X-Amz-Server-Side-Encryption-Bucket-Key-Enabled": "true", "If-None-Match": "*",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if header.Get("X-Amz-Checksum-Crc32c") == "" {
		t.Error("no checksum")
	}
}
