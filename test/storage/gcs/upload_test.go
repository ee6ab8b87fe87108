package gcs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/gcs"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

func TestChunks(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	c := config(in)
	for _, size := range []int{mib, 2 * mib, 3*mib + 1} {
		for _, known := range []bool{true, false} {
			sent := uploads.Random(size)
			h := gcs.New()
			req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
			if !known {
				req.Payload = payload.NewContent(payload.Info{Size: -1}, req.Payload.OpenAt)
			}
			x := &uploads.Transfer{}
			req.Transfer = x
			result, err := h.Deliver(t.Context(), req)
			if err != nil {
				t.Fatalf("%d, %t: %v", size, known, err)
			}
			if got := object(in, req.ItemID); !bytes.Equal(got, sent) {
				t.Errorf("%d, %t: %d bytes came", size, known, len(got))
			}
			if done, saves := x.Seen(); !slices.IsSorted(done) || done[len(done)-1] != int64(size) || saves != 1 && size > mib {
				t.Errorf("%d, %t: progress %v, %d checkpoints", size, known, done, saves)
			}
			if r := result.Reference; r.Details["etag"] == "" || !strings.HasSuffix(r.URL, "/"+in+"/"+req.ItemID) {
				t.Errorf("%+v", r)
			}
			req.Attempt = 2 // as after a lost answer
			if result, err = h.Deliver(t.Context(), req); err != nil || result.Notes["existing"] == "" {
				t.Errorf("again: %+v, %v", result, err)
			}
		}
	}
}

// An upload breaks off; the next attempt, in another process, sends what is missing and no more.
func TestResume(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	f := newFront(t)
	c := throughFront(f, in)
	sent := uploads.Random(5*mib + 7) // 6 chunks
	h := gcs.New()
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{}
	f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
		if operation == "Chunk" && n > 4 {
			fail(w, 503, "backendError", "Backend Error")
			return true
		}
		return false
	})
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Remote || !e.WillRetry() {
		t.Fatalf("%v", err)
	}
	if object(in, req.ItemID) != nil {
		t.Fatal("half an object can be seen")
	}

	f.Reset(nil)
	other := gcs.New()
	handlertest.Open(t, other)
	req.Attempt = 2
	changed, _ := req.Config.(gcs.Config)
	changed.ChunkSize = 2 * mib // of new uploads and the rest of this one
	req.Config = changed
	if _, err := other.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if _, size := f.Count("Chunk"); size != mib+7 {
		t.Errorf("%d bytes were sent, want those that were missing", size)
	}
	if n, _ := f.Count("Start"); n != 0 {
		t.Error("another upload was begun")
	}
	if !bytes.Equal(object(in, req.ItemID), sent) {
		t.Error("the object differs")
	}
}

// The connection is cut in the middle of a chunk, of which the other side keeps a part: that is not
// sent again.
func TestCutChunk(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	f := newFront(t)
	cut := false
	inner := f.Config.Handler
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if operationOf(r) == "Chunk" && !cut && r.Header.Get("Content-Range") == "bytes 1048576-2097151/*" {
			cut = true
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 700<<10), failing{io.ErrUnexpectedEOF}))
			server.Config.Handler.ServeHTTP(discard{http.Header{}}, r)
			uploads.Cut(w)
			return
		}
		inner.ServeHTTP(w, r)
	})
	sent := uploads.Random(3*mib + 1)
	h := gcs.New()
	req := handlertest.Request(t, h, throughFront(f, in), payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{}
	if _, err := h.Deliver(t.Context(), req); err != nil || !cut {
		t.Fatalf("cut %t, %v", cut, err)
	}
	if !bytes.Equal(object(in, req.ItemID), sent) {
		t.Error("the object differs")
	}
	if _, size := f.Count("Chunk"); size != 3*mib+1-512<<10 { // not the cut one, and half of it was kept
		t.Errorf("%d bytes went the usual way", size)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// What changed between the attempts is never mixed, whether its hash is known or not.
func TestResumeWithAnotherContent(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	for _, known := range []bool{true, false} {
		f := newFront(t)
		h := gcs.New()
		sent := uploads.Random(4 * mib)
		req := handlertest.Request(t, h, throughFront(f, in), payload.Bytes("large.bin", sent))
		req.Transfer = &uploads.Transfer{}
		content := func(b []byte) *payload.Content {
			c := handlertest.Content(t, payload.Bytes("large.bin", b))
			if known {
				return c
			}
			return payload.NewContent(payload.Info{Size: -1}, c.OpenAt)
		}
		req.Payload = content(sent)
		f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
			if operation == "Chunk" && n > 2 {
				fail(w, 500, "backendError", "Backend Error")
				return true
			}
			return false
		})
		if _, err := h.Deliver(t.Context(), req); err == nil {
			t.Fatal("delivered")
		}
		f.Reset(nil)
		changed := bytes.Clone(sent)
		changed[mib]++
		req.Payload = content(changed)
		var err error
		for req.Attempt = 2; req.Attempt < 4; req.Attempt++ {
			if _, err = h.Deliver(t.Context(), req); err == nil {
				break
			}
			if e := handler.Classify(err); known || !e.WillRetry() || object(in, req.ItemID) != nil {
				t.Errorf("known %t: %v", known, err)
			}
		}
		if err != nil || !bytes.Equal(object(in, req.ItemID), changed) {
			t.Errorf("known %t: the object is a mixture, or there is none: %v", known, err)
		}
	}
}

func TestUselessCheckpoints(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	c := config(in)
	sent := uploads.Random(3 * mib)
	sum := handlertest.Content(t, payload.Bytes("x", sent)).Info().SHA256
	for name, checkpoint := range map[string]string{
		"gone":         `{"bucket":"` + in + `","name":"ITEM","sha256":"` + sum + `","session":"` + server.URL + `/upload/storage/v1/b/x/o?upload_id=unknown"}`,
		"elsewhere":    `{"bucket":"` + in + `","name":"ITEM","sha256":"` + sum + `","session":"http://169.254.169.254/upload?upload_id=1"}`,
		"other bucket": `{"bucket":"x","name":"ITEM","sha256":"` + sum + `","session":"` + server.URL + `/x"}`,
		"another's":    `{"offset":17}`,
		"wrong shape":  `[1,2,3]`,
		"no JSON":      `{`,
	} {
		h := gcs.New()
		req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
		req.Transfer, req.Attempt = uploads.NewTransfer(strings.ReplaceAll(checkpoint, "ITEM", req.ItemID)), 2
		if _, err := h.Deliver(t.Context(), req); err != nil || !bytes.Equal(object(in, req.ItemID), sent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := gcs.New()
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{Fail: handler.ErrLeaseLost}
	if _, err := h.Deliver(t.Context(), req); !errors.Is(err, handler.ErrLeaseLost) || object(in, req.ItemID) != nil {
		t.Errorf("after a lost lease: %v", err)
	}
}

// Two workers hold the same item, as when a lease was lost: one object, and both find it right.
func TestTwoWorkers(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	c := config(in)
	for _, size := range []int{1000, 5 * mib} {
		sent := uploads.Random(size)
		h := gcs.New()
		base := handlertest.Request(t, h, c, payload.Bytes("x.bin", sent))
		base.Transfer = &uploads.Transfer{}
		var group sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			req := *base
			group.Go(func() { _, errs[i] = h.Deliver(t.Context(), &req) })
		}
		group.Wait()
		delivered := 0
		for _, err := range errs {
			if err == nil {
				delivered++
			} else if !handler.Classify(err).WillRetry() {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		base.Attempt = 2
		if _, err := h.Deliver(t.Context(), base); err != nil || delivered == 0 {
			t.Errorf("%d bytes: %d delivered, %v", size, delivered, err)
		}
		if !bytes.Equal(object(in, base.ItemID), sent) {
			t.Error("the object differs")
		}
	}
}

// The last request did its work and its answer was lost: the item is delivered, by this attempt.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	f := newFront(t)
	for _, operation := range []string{"POST", "Chunk"} {
		size := map[string]int{"POST": 10, "Chunk": 3 * mib}[operation]
		sent := uploads.Random(size)
		lost := false
		inner := f.Config.Handler
		f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if operationOf(r) == operation && !lost && !strings.HasSuffix(r.Header.Get("Content-Range"), "/*") {
				lost = true
				inner.ServeHTTP(discard{http.Header{}}, r)
				uploads.Cut(w)
				return
			}
			inner.ServeHTTP(w, r)
		})
		h := gcs.New()
		req := handlertest.Request(t, h, throughFront(f, in), payload.Bytes("x", sent))
		req.Transfer = &uploads.Transfer{}
		if _, err := h.Deliver(t.Context(), req); err != nil || !lost {
			t.Errorf("%s: lost %t, %v", operation, lost, err)
		}
		if !bytes.Equal(object(in, req.ItemID), sent) {
			t.Error("the object differs")
		}
		f.Config.Handler = inner
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

func TestConflict(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	c := config(in)
	c.Naming = storage.Naming{Name: "fixed"}
	first := uploads.Random(2 * mib)
	deliver := func(b []byte, replace bool) error {
		c := c
		if replace {
			c.IfExists = storage.Replace
		}
		h := gcs.New()
		_, err := h.Deliver(t.Context(), handlertest.Request(t, h, c, payload.Bytes("x", b)))
		return err
	}
	for range 2 {
		if err := deliver(first, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range [][]byte{[]byte("small"), first[1:], append(bytes.Clone(first[1:]), 1)} {
		err := deliver(other, false)
		if e := handler.Classify(err); err == nil || e.Category != handler.Conflict || e.WillRetry() {
			t.Errorf("%d other bytes: %v", len(other), err)
		}
	}
	if !bytes.Equal(object(in, "fixed"), first) {
		t.Error("was replaced")
	}
	if err := deliver([]byte("small"), true); err != nil || string(object(in, "fixed")) != "small" {
		t.Errorf("not replaced: %v", err)
	}
}

// What a config asks for is on the object, whether it was sent at once or in chunks.
func TestAttributes(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	c := config(in)
	c.StorageClass, c.Retention = "NEARLINE", gcs.Retention{Mode: "Unlocked", Days: 3}
	c.Attributes = storage.Attributes{ContentType: "text/csv", Metadata: map[string]string{"Cost-Centre": "exports"}}
	for _, size := range []int{100, 2 * mib} {
		h := gcs.New()
		req := handlertest.Request(t, h, c, payload.Bytes("x.bin", uploads.Random(size)))
		if _, err := h.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		o, err := fake.GetObject(in, req.ItemID)
		if err != nil {
			t.Fatal(err)
		}
		if o.ContentType != "text/csv" || o.StorageClass != "NEARLINE" || o.Metadata["cost-centre"] != "exports" ||
			o.Metadata[storage.MetadataItem] != req.ItemID || o.Metadata[storage.MetadataSHA256] != req.Payload.Info().SHA256 {
			t.Errorf("%d: %+v", size, o.ObjectAttrs)
		}
		if o.Retention == nil || o.Retention.Mode != "Unlocked" || time.Until(o.Retention.RetainUntil).Hours() < 71 {
			t.Errorf("%d: retention %+v", size, o.Retention)
		}
	}
}

// What the fake does not keep is told by the request.
func TestRequests(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	f := newFront(t)
	var mu sync.Mutex
	var seen []string
	inner := f.Config.Handler
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			seen = append(seen, r.URL.String()+" "+string(body))
			mu.Unlock()
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		inner.ServeHTTP(w, r)
	})
	c := throughFront(f, in)
	c.KMSKey = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
	c.Retention.Hold = "event_based"
	for _, size := range []int{10, 2 * mib} {
		h := gcs.New()
		if _, err := h.Deliver(t.Context(), handlertest.Request(t, h, c, payload.Bytes("x", uploads.Random(size)))); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range seen {
		for _, want := range []string{"kmsKeyName=projects%2Fp%2Flocations%2Fl%2FkeyRings%2Fr%2FcryptoKeys%2Fk", "ifGenerationMatch=0", `"eventBasedHold":true`} {
			if !strings.Contains(text, want) {
				t.Errorf("no %s in %.600s", want, text)
			}
		}
	}
	if len(seen) != 2 {
		t.Errorf("%d requests", len(seen))
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	h := gcs.New()
	handlertest.Open(t, h)
	if _, err := h.Bucket(t.Context(), "acme", gcs.Config{}); err == nil {
		t.Error("a faulty config is accepted")
	}
	b, err := h.Bucket(t.Context(), "acme", config(newBucket(t)))
	if err != nil {
		t.Fatal(err)
	}
	uploads.CheckBucket(t, b)
}

// Each failure has its category, a message that helps, and the right retry.
func TestFailures(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	for _, c := range []struct {
		status          int
		reason, message string
		category        handler.Category
		retry           bool
		says            string
	}{
		{403, "forbidden", "exports@acme does not have storage.objects.create access", handler.Authentication, false, "lack a permission: storage.objects.create"},
		{401, "authError", "Invalid Credentials", handler.Authentication, false, "token is refused"},
		{403, "accountDisabled", "disabled", handler.Authentication, false, "payments"},
		{404, "notFound", "The specified bucket does not exist.", handler.Configuration, false, "create it"},
		{400, "invalid", "Invalid storage class", handler.Configuration, false, "storage_class"},
		{403, "forbidden", "Permission denied on Cloud KMS key", handler.Configuration, false, "EncrypterDecrypter"},
		{403, "userRateLimitExceeded", "slow down", handler.RateLimit, true, "tried again later"},
		{429, "rateLimitExceeded", "slow down", handler.RateLimit, true, "tried again later"},
		{500, "internalError", "oops", handler.Remote, true, ""},
		{502, "", "", handler.Remote, true, ""},
		{503, "backendError", "Backend Error", handler.Remote, true, ""},
		{504, "backendError", "Backend Error", handler.Remote, true, ""},
		{400, "invalid", "Provided CRC32C hash does not match", handler.Network, true, "changed on the way"},
		{0, "", "", handler.Network, true, ""},
	} {
		t.Run(fmt.Sprint(c.status, " ", c.reason, " ", c.message), func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{10, 2 * mib} {
				f := newFront(t)
				var tries atomic.Int32
				f.Reset(func(operation string, _ int, w http.ResponseWriter) bool {
					if operation != "POST" && operation != "Chunk" {
						return false
					}
					tries.Add(1)
					if c.status == 0 {
						uploads.Cut(w)
					} else {
						fail(w, c.status, c.reason, c.message)
					}
					return true
				})
				config := throughFront(f, in)
				h := gcs.New()
				_, err := h.Deliver(t.Context(), handlertest.Request(t, h, config, payload.Bytes("x", uploads.Random(size))))
				if err == nil {
					t.Fatal("delivered")
				}
				if c.status == 404 && size > mib {
					if !handler.Classify(err).WillRetry() { // a session that is gone is not a missing bucket
						t.Errorf("%v", err)
					}
					continue
				}
				e := handler.Classify(err)
				if e.Category != c.category || e.WillRetry() != c.retry || e.StatusCode != c.status || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%d bytes: %s, retry %t, status %d: %v", size, e.Category, e.WillRetry(), e.StatusCode, err)
				}
				if strings.ContainsAny(err.Error(), "\n") || len(err.Error()) > 1000 || strings.Contains(err.Error(), "upload_id") {
					t.Errorf("%q", err)
				}
				if again := c.status == 0 || c.status == 429 || c.status >= 500; again && tries.Load() != 3 || !again && tries.Load() != 1 {
					t.Errorf("%d bytes: %d tries within the attempt", size, tries.Load())
				}
			}
		})
	}
}

// A permission that is missing is named by the step of the connection test that needs it.
func TestCanaryNamesThePermission(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	for denied, want := range map[string]string{"": "", "POST": "storage.objects.create", "GET": "storage.objects.get", "DELETE": "storage.objects.delete"} {
		f := newFront(t)
		f.Reset(func(operation string, _ int, w http.ResponseWriter) bool {
			if operation == denied {
				fail(w, 403, "forbidden", "denied")
			}
			return operation == denied
		})
		h := gcs.New()
		handlertest.Open(t, h)
		parsed, _ := handlertest.Parse(t, h, throughFront(f, in))
		report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: parsed})
		if err != nil || report.OK != (want == "") {
			t.Errorf("%s: %+v, %v", denied, report, err)
			continue
		}
		if !report.OK && !slices.ContainsFunc(report.Steps, func(s destination.TestStep) bool { return !s.OK && strings.Contains(s.Finding, want) }) {
			t.Errorf("%s: nothing names %s: %+v", denied, want, report.Steps)
		}
	}
}

// Through the real service, with its database for checkpoints: an upload breaks off and is resumed
// by a retry.
func TestService(t *testing.T) {
	t.Parallel()
	in := newBucket(t)
	f := newFront(t)
	c := throughFront(f, in)
	kit := deliverytest.New(t, delivery.WithHandler("gcs", gcs.New()), delivery.WithNetwork(delivery.Network{Loopback: true}),
		delivery.WithKeys(delivery.LocalKey("k", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")))
	acme := kit.Org("acme")
	if _, err := acme.Destinations().Create(t.Context(), destination.Spec{Label: "archive", Default: true, Config: c}); err != nil {
		t.Fatal(err)
	}
	failing := true
	f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
		if failing && operation == "Chunk" && n > 2 {
			failing = n < 5 // three tries within the attempt
			fail(w, 500, "backendError", "Backend Error")
			return true
		}
		return false
	})
	sent := uploads.Random(4 * mib)
	receipt, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.Reader("export.bin", io.LimitReader(bytes.NewReader(sent), 1<<40))})
	if err != nil {
		t.Fatal(err)
	}
	kit.Process()
	kit.Advance(time.Minute)
	status, err := acme.Status(t.Context(), receipt.ID)
	if err != nil || len(status.Items) != 1 {
		t.Fatalf("%+v, %v", status, err)
	}
	item := status.Items[0]
	if !bytes.Equal(object(in, item.ID), sent) {
		t.Errorf("%+v", item)
	}
	if n, _ := f.Count("Chunk"); n != 7 { // 2, 3 tries of the third, and the 2 that were missing
		t.Errorf("%d chunks were sent, want 7", n)
	}
}
