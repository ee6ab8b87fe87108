package azure_test

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
	"github.com/deliverykit/delivery/handler/storage/azure"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

func TestBlocks(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	c := config(in)
	for _, size := range []int{mib, 2 * mib, 3*mib + 1} {
		for _, known := range []bool{true, false} {
			sent := uploads.Random(size)
			h := azure.New()
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
			if got := object(t, in, req.ItemID); !bytes.Equal(got, sent) {
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
	in := newContainer(t)
	f := newFront(t)
	c := throughFront(f, in)
	c.Parallel = 1
	sent := uploads.Random(5*mib + 7) // 6 blocks
	h := azure.New()
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{}
	f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
		if operation == "Block" && n > 4 {
			fail(w, 500, "InternalError")
			return true
		}
		return false
	})
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Remote || !e.WillRetry() {
		t.Fatalf("%v", err)
	}
	if object(t, in, req.ItemID) != nil || staged(t, in, req.ItemID) != 4 {
		t.Fatalf("half a blob can be seen, or %d blocks are staged", staged(t, in, req.ItemID))
	}

	f.Reset(nil)
	other := azure.New()
	handlertest.Open(t, other)
	req.Attempt = 2
	changed, _ := req.Config.(azure.Config)
	changed.BlockSize = 2 * mib // of new uploads; this one goes on as it began
	req.Config = changed
	if _, err := other.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if n, size := f.Count("Block"); n != 2 || size != mib+7 {
		t.Errorf("%d blocks of %d bytes were sent, want the 2 that were missing", n, size)
	}
	if !bytes.Equal(object(t, in, req.ItemID), sent) {
		t.Error("the blob differs")
	}
}

// What changed between the attempts is sent again, and never mixed.
func TestResumeWithAnotherContent(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	f := newFront(t)
	c := throughFront(f, in)
	h := azure.New()
	sent := uploads.Random(4 * mib)
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{}
	f.Reset(func(operation string, _ int, w http.ResponseWriter) bool {
		if operation == "Commit" {
			fail(w, 500, "InternalError")
		}
		return operation == "Commit"
	})
	if _, err := h.Deliver(t.Context(), req); err == nil {
		t.Fatal("delivered")
	}
	f.Reset(nil)
	changed := bytes.Clone(sent)
	changed[2*mib]++
	req.Payload, req.Attempt = handlertest.Content(t, payload.Bytes("large.bin", changed)), 2
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if n, _ := f.Count("Block"); n != 1 {
		t.Errorf("%d blocks were sent, want the one that changed", n)
	}
	if !bytes.Equal(object(t, in, req.ItemID), changed) {
		t.Error("the blob is a mixture")
	}
}

func TestUselessCheckpoints(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	c := config(in)
	sent := uploads.Random(3 * mib)
	for name, checkpoint := range map[string]string{
		"gone":            `{"container":"` + server + "/" + in + `","name":"ITEM","block_size":1048576}`,
		"other container": `{"container":"x","name":"ITEM","block_size":1048576}`,
		"no size":         `{"container":"` + server + "/" + in + `","name":"ITEM"}`,
		"another's":       `{"offset":17}`,
		"wrong shape":     `[1,2,3]`,
		"no JSON":         `{`,
	} {
		h := azure.New()
		req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
		req.Transfer, req.Attempt = uploads.NewTransfer(strings.ReplaceAll(checkpoint, "ITEM", req.ItemID)), 2
		if _, err := h.Deliver(t.Context(), req); err != nil || !bytes.Equal(object(t, in, req.ItemID), sent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := azure.New()
	req := handlertest.Request(t, h, c, payload.Bytes("large.bin", sent))
	req.Transfer = &uploads.Transfer{Fail: handler.ErrLeaseLost}
	if _, err := h.Deliver(t.Context(), req); !errors.Is(err, handler.ErrLeaseLost) || staged(t, in, req.ItemID) != 0 {
		t.Errorf("after a lost lease: %v", err)
	}
}

// Two workers hold the same item, as when a lease was lost: one blob, and both find it right.
func TestTwoWorkers(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	c := config(in)
	for _, size := range []int{1000, 5 * mib} {
		sent := uploads.Random(size)
		h := azure.New()
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
		if !bytes.Equal(object(t, in, base.ItemID), sent) {
			t.Error("the blob differs")
		}
	}
}

// Commit did its work and its answer was lost: the item is delivered, by this attempt.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	f := newFront(t)
	for _, operation := range []string{"PUT", "Commit"} {
		size := map[string]int{"PUT": 10, "Commit": 3 * mib}[operation]
		sent := uploads.Random(size)
		lost := false
		inner := f.Config.Handler
		f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if operationOf(r) == operation && !lost {
				lost = true
				inner.ServeHTTP(discard{http.Header{}}, r)
				uploads.Cut(w)
				return
			}
			inner.ServeHTTP(w, r)
		})
		h := azure.New()
		req := handlertest.Request(t, h, throughFront(f, in), payload.Bytes("x", sent))
		req.Transfer = &uploads.Transfer{}
		if _, err := h.Deliver(t.Context(), req); err != nil || !lost {
			t.Errorf("%s: lost %t, %v", operation, lost, err)
		}
		if !bytes.Equal(object(t, in, req.ItemID), sent) {
			t.Error("the blob differs")
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
	in := newContainer(t)
	c := config(in)
	c.Naming = storage.Naming{Name: "fixed"}
	first := uploads.Random(2 * mib)
	deliver := func(b []byte, replace bool) error {
		c := c
		if replace {
			c.IfExists = storage.Replace
		}
		h := azure.New()
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
	if !bytes.Equal(object(t, in, "fixed"), first) {
		t.Error("was replaced")
	}
	if err := deliver([]byte("small"), true); err != nil || string(object(t, in, "fixed")) != "small" {
		t.Errorf("not replaced: %v", err)
	}
}

// What a config asks for is on the blob, whether it was sent at once or in blocks.
func TestAttributes(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	c := config(in)
	c.Tier = "Cool"
	c.Attributes = storage.Attributes{ContentType: "text/csv", Metadata: map[string]string{"Cost-Centre": "exports"}, Tags: map[string]string{"kind": "a b"}}
	for _, size := range []int{100, 2 * mib} {
		h := azure.New()
		req := handlertest.Request(t, h, c, payload.Bytes("x.bin", uploads.Random(size)))
		if _, err := h.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		b := admin(t, in).NewBlobClient(req.ItemID)
		p, err := b.GetProperties(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		metadata := map[string]string{}
		for name, v := range p.Metadata {
			metadata[strings.ToLower(name)] = *v
		}
		if *p.ContentType != "text/csv" || *p.AccessTier != "Cool" || metadata["cost_centre"] != "exports" ||
			metadata["delivery_item"] != req.ItemID || metadata["delivery_sha256"] != req.Payload.Info().SHA256 {
			t.Errorf("%d: %s, %s, %v", size, *p.ContentType, *p.AccessTier, metadata)
		}
		tags, err := b.GetTags(t.Context(), nil)
		if err != nil || len(tags.BlobTagSet) != 1 || *tags.BlobTagSet[0].Value != "a b" {
			t.Errorf("%d: %v, %v", size, tags, err)
		}
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	h := azure.New()
	handlertest.Open(t, h)
	if _, err := h.Bucket(t.Context(), azure.Config{}); err == nil {
		t.Error("a faulty config is accepted")
	}
	b, err := h.Bucket(t.Context(), config(newContainer(t)))
	if err != nil {
		t.Fatal(err)
	}
	uploads.CheckBucket(t, b)
}

// Each failure has its category, a message that helps, and the right retry.
func TestFailures(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	for _, c := range []struct {
		status   int
		code     string
		category handler.Category
		retry    bool
		says     string
	}{
		{403, "AuthorizationPermissionMismatch", handler.Authentication, false, "the account does not allow this with its key"},
		{403, "AuthorizationFailure", handler.Authentication, false, "firewall"},
		{403, "AuthenticationFailed", handler.Authentication, false, "the account key does not belong"},
		{403, "KeyBasedAuthenticationNotPermitted", handler.Authentication, false, "service principal"},
		{401, "InvalidAuthenticationInfo", handler.Authentication, false, "token is refused"},
		{404, "ContainerNotFound", handler.Configuration, false, "create it"},
		{409, "ContainerBeingDeleted", handler.Configuration, false, "being deleted"},
		{503, "ServerBusy", handler.RateLimit, true, "tried again later"},
		{429, "TooManyRequests", handler.RateLimit, true, "tried again later"},
		{500, "InternalError", handler.Remote, true, ""},
		{500, "OperationTimedOut", handler.Timeout, true, ""},
		{502, "", handler.Remote, true, ""},
		{400, "Md5Mismatch", handler.Network, true, "changed on the way"},
		{400, "InvalidHeaderValue", handler.Configuration, false, "tier"},
		{413, "RequestBodyTooLarge", handler.Configuration, false, "block_size"},
		{409, "BlobImmutableDueToPolicy", handler.Conflict, false, "immutability"},
		{0, "", handler.Network, true, ""},
	} {
		t.Run(fmt.Sprint(c.status, " ", c.code), func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{10, 2 * mib} {
				f := newFront(t)
				var tries atomic.Int32
				f.Reset(func(operation string, _ int, w http.ResponseWriter) bool {
					if operation != "PUT" && operation != "Block" {
						return false
					}
					tries.Add(1)
					if c.status == 0 {
						uploads.Cut(w)
					} else {
						fail(w, c.status, c.code)
					}
					return true
				})
				config := throughFront(f, in)
				config.Parallel = 1
				h := azure.New()
				_, err := h.Deliver(t.Context(), handlertest.Request(t, h, config, payload.Bytes("x", uploads.Random(size))))
				e := handler.Classify(err)
				if err == nil || e.Category != c.category || e.WillRetry() != c.retry || e.StatusCode != c.status || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%d bytes: %s, retry %t, status %d: %v", size, e.Category, e.WillRetry(), e.StatusCode, err)
				}
				if strings.ContainsAny(err.Error(), "\n") || len(err.Error()) > 1000 {
					t.Errorf("%q", err)
				}
				if again := c.status == 0 || c.status == 429 || c.status >= 500; again && tries.Load() != 3 || !again && tries.Load() != 1 {
					t.Errorf("%d tries within the attempt", tries.Load())
				}
			}
		})
	}
}

// A permission that is missing is named by the step of the connection test that needs it.
func TestCanaryNamesThePermission(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	for permissions, want := range map[string]string{"rwdl": "", "rl": "create (c) or write (w)", "cdl": "read (r)", "crl": "delete (d)"} {
		h := azure.New()
		handlertest.Open(t, h)
		c := config(in)
		c.Credentials = azure.Credentials{Type: azure.SAS, SAS: destination.NewSecret(signature(t, in, permissions, 1))}
		parsed, _ := handlertest.Parse(t, h, c)
		report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: parsed})
		if err != nil || report.OK != (want == "") {
			t.Errorf("%s: %+v, %v", permissions, report, err)
			continue
		}
		if !report.OK && !slices.ContainsFunc(report.Steps, func(s destination.TestStep) bool { return !s.OK && strings.Contains(s.Finding, want) }) {
			t.Errorf("%s: nothing names %s: %+v", permissions, want, report.Steps)
		}
	}
}

// Through the real service, with its database for checkpoints: an upload breaks off and is resumed
// by a retry.
func TestService(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	f := newFront(t)
	c := throughFront(f, in)
	c.Parallel = 1
	kit := deliverytest.New(t, delivery.WithHandler("azure", azure.New()), delivery.WithNetwork(delivery.Network{Loopback: true}),
		delivery.WithKeys(delivery.LocalKey("k", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")))
	acme := kit.Org("acme")
	if _, err := acme.Destinations().Create(t.Context(), destination.Spec{Label: "archive", Default: true, Config: c}); err != nil {
		t.Fatal(err)
	}
	failing := true
	f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
		if failing && operation == "Block" && n > 2 {
			failing = n < 5 // three tries within the attempt
			fail(w, 500, "InternalError")
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
	if !bytes.Equal(object(t, in, item.ID), sent) {
		t.Errorf("%+v", item)
	}
	if n, _ := f.Count("Block"); n != 7 { // 2, 3 tries of the third, and the 2 that were missing
		t.Errorf("%d blocks were sent, want 7", n)
	}
}
