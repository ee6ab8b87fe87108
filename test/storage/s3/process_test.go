package s3_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/test/internal/uploads"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/s3"
)

// order is what a process of its own is to upload.
type order struct {
	Endpoint, Bucket, Item, Checkpoint string
	Size                               int64
}

const orderVariable = "DELIVERY_TEST_S3_UPLOAD"

func (o order) request(h *s3.Handler) (*handler.Request, error) {
	c := config(o.Bucket)
	c.Endpoint, c.Naming = o.Endpoint, storage.Naming{Name: "{item}"}
	raw, err := destination.Raw(c)
	if err != nil {
		return nil, err
	}
	parsed, err := h.ParseConfig(raw)
	return &handler.Request{
		ItemID: o.Item, Attempt: 1, Organization: "acme", Config: parsed, Payload: uploads.Generated(o.Size), Transfer: uploads.File(o.Checkpoint),
	}, err
}

// uploadInProcess is the whole of the other process. It prints how many KiB its memory has grown
// by.
func uploadInProcess(text string) int {
	var o order
	err := json.Unmarshal([]byte(text), &o)
	h := s3.New()
	if err == nil {
		err = h.Open(handler.Env{Client: &http.Client{}, Dial: new(net.Dialer).DialContext, Now: time.Now})
	}
	var req *handler.Request
	if err == nil {
		req, err = o.request(h)
	}
	before := uploads.Memory("VmRSS")
	if err == nil {
		_, err = h.Deliver(context.Background(), req)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(uploads.Memory("VmHWM") - before)
	return 0
}

func start(t *testing.T, o order) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("NOT TESTED: reads /proc")
	}
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), orderVariable+"="+string(b))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

func soak(long, short int64) int64 {
	if os.Getenv("DELIVERY_SOAK") == "1" {
		return long
	}
	return short
}

func verifyObject(t *testing.T, o order) {
	t.Helper()
	r, err := uploads.Generated(o.Size).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := uploads.Digest(r)
	if err != nil {
		t.Fatal(err)
	}
	out, err := admin().GetObject(t.Context(), &awss3.GetObjectInput{Bucket: &o.Bucket, Key: &o.Item})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	got, n, err := uploads.Digest(out.Body)
	if err != nil || got != want || n != o.Size {
		t.Errorf("%d bytes of SHA-256 %s came, want %d of %s: %v", n, got, o.Size, want, err)
	}
}

// A large object in a small memory; with DELIVERY_SOAK=1 5 GiB.
func TestMemory(t *testing.T) {
	t.Parallel()
	o := order{Endpoint: gateway, Bucket: newBucket(t, false), Item: "large", Checkpoint: t.TempDir() + "/c", Size: soak(5<<30, 256<<20)}
	cmd, out := start(t, o)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	grown, err := strconv.Atoi(strings.TrimSpace(out.String()))
	t.Logf("%d MiB: the process has grown by %d MiB", o.Size>>20, grown>>10)
	if limit := 64 << 10; err != nil || grown > limit && !raceDetector {
		t.Errorf("the process has grown by %d KiB, the limit is %d: %s", grown, limit, out)
	}
	verifyObject(t, o)
}

// A process is killed at 60 % of an upload; another one sends what is missing, and what was under
// way. With DELIVERY_SOAK=1 of 2 GiB.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	const part, parallel = 5 << 20, 4
	f := newFront(t)
	o := order{Endpoint: f.URL, Bucket: newBucket(t, false), Item: "large", Checkpoint: t.TempDir() + "/c", Size: soak(2<<30, 160<<20)}
	reached := make(chan struct{})
	f.Reset(func(operation string, n int, _ http.ResponseWriter) bool {
		if operation == "UploadPart" && int64(n) == o.Size*6/10/part+parallel { // that many fewer are finished at least
			close(reached)
		}
		return false
	})
	cmd, out := start(t, o)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // killed
	}()
	select {
	case <-reached:
	case <-ended:
		t.Fatalf("the process has ended by itself: %s", out)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if object(t, o.Bucket, o.Item) != nil {
		t.Fatal("half an object can be seen")
	}

	f.Reset(nil)
	h := s3.New()
	handlertest.Open(t, h)
	req, err := o.request(h)
	if err != nil {
		t.Fatal(err)
	}
	req.Attempt = 2
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	_, sent := f.Count("UploadPart")
	t.Logf("%d MiB: %d MiB were sent after the kill, %.0f %%", o.Size>>20, sent>>20, 100*float64(sent)/float64(o.Size))
	if most := o.Size*4/10 + 2*parallel*part; sent > most {
		t.Errorf("%d bytes were sent again, at most %d were missing or under way", sent, most)
	}
	verifyObject(t, o)
}
