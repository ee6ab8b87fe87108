package s3_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload"
)

// order is what a process of its own is to upload.
type order struct {
	Endpoint, Bucket, Item, Checkpoint string
	Size                               int64
}

const orderVariable = "DELIVERY_TEST_S3_UPLOAD"

// generated is content of a size, the same each time, of which none is in memory.
func generated(size int64) *payload.Content {
	open := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{9}), size) }
	return payload.NewContent(payload.Info{Name: "export.bin", ContentType: "application/octet-stream", Size: size},
		func(_ context.Context, offset int64) (io.ReadCloser, error) {
			r := open()
			_, err := io.CopyN(io.Discard, r, offset)
			return io.NopCloser(r), err
		})
}

func (o order) request(h *s3.Handler) (*handler.Request, error) {
	c := config(o.Bucket)
	c.Endpoint, c.Naming = o.Endpoint, storage.Naming{Name: "{item}"}
	raw, err := destination.Raw(c)
	if err != nil {
		return nil, err
	}
	parsed, err := h.ParseConfig(raw)
	return &handler.Request{
		ItemID: o.Item, Attempt: 1, Organization: "acme", Config: parsed, Payload: generated(o.Size), Transfer: file(o.Checkpoint),
	}, err
}

// file keeps a checkpoint, as a database would.
type file string

func (f file) Progress(int64) {}
func (f file) Resume() (json.RawMessage, error) {
	b, err := os.ReadFile(string(f))
	if os.IsNotExist(err) {
		return nil, nil
	}
	return b, err
}
func (f file) Checkpoint(_ context.Context, v json.RawMessage) error {
	return os.WriteFile(string(f), v, 0o600)
}

// uploadInProcess is the whole of the other process. It prints how many KiB its memory has grown by.
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
	before := memory("VmRSS")
	if err == nil {
		_, err = h.Deliver(context.Background(), req)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(memory("VmHWM") - before)
	return 0
}

func memory(field string) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), field+":")
	kib, _ := strconv.Atoi(strings.Fields(after)[0])
	return kib
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
	want := sha256.New()
	r, err := generated(o.Size).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(want, r); err != nil {
		t.Fatal(err)
	}
	out, err := admin().GetObject(t.Context(), &awss3.GetObjectInput{Bucket: &o.Bucket, Key: &o.Item})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	got := sha256.New()
	if _, err := io.Copy(got, out.Body); err != nil {
		t.Fatal(err)
	}
	if g, w := hex.EncodeToString(got.Sum(nil)), hex.EncodeToString(want.Sum(nil)); g != w || aws.ToInt64(out.ContentLength) != o.Size {
		t.Errorf("%d bytes of SHA-256 %s came, want %d of %s", aws.ToInt64(out.ContentLength), g, o.Size, w)
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

// A process is killed at 60 % of an upload; another one sends what is missing, and what was under way. With DELIVERY_SOAK=1
// of 2 GiB.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	const part, parallel = 5 << 20, 4
	f := newFront(t)
	o := order{Endpoint: f.URL, Bucket: newBucket(t, false), Item: "large", Checkpoint: t.TempDir() + "/c", Size: soak(2<<30, 160<<20)}
	reached := make(chan struct{})
	f.reset(func(operation string, n int, _ http.ResponseWriter) bool {
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

	f.reset(nil)
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
	_, sent := f.count("UploadPart")
	t.Logf("%d MiB: %d MiB were sent after the kill, %.0f %%", o.Size>>20, sent>>20, 100*float64(sent)/float64(o.Size))
	if most := o.Size*4/10 + 2*parallel*part; sent > most {
		t.Errorf("%d bytes were sent again, at most %d were missing or under way", sent, most)
	}
	verifyObject(t, o)
}
