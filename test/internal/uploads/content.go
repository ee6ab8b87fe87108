package uploads

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// Random returns n bytes of all values, the same each time.
func Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

// Generated is content of a size, the same each time, of which none is in memory.
func Generated(size int64) *payload.Content {
	open := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{9}), size) }
	return payload.NewContent(payload.Info{Name: "export.bin", ContentType: "application/octet-stream", Size: size},
		func(_ context.Context, offset int64) (io.ReadCloser, error) {
			r := open()
			_, err := io.CopyN(io.Discard, r, offset)
			return io.NopCloser(r), err
		})
}

// Digest reads r to its end, and returns its SHA-256 in hex.
func Digest(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// Upload is an object of that content, as a bucket is asked to store it.
func Upload(name, content string) *storage.Upload {
	return &storage.Upload{
		Name: name, Size: int64(len(content)), ContentType: "text/plain", Progress: func(int64) {},
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(content[offset:])), nil
		},
	}
}

// Transfer keeps checkpoints and progress.
type Transfer struct {
	Fail error // of a checkpoint

	mu    sync.Mutex
	raw   json.RawMessage
	done  []int64
	saves int
}

// NewTransfer returns a Transfer that has a checkpoint already.
func NewTransfer(checkpoint string) *Transfer { return &Transfer{raw: json.RawMessage(checkpoint)} }

// Progress implements handler.Transfer.
func (x *Transfer) Progress(done int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.done = append(x.done, done)
}

// Resume implements handler.Transfer.
func (x *Transfer) Resume() (json.RawMessage, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.raw, nil
}

// Checkpoint implements handler.Transfer.
func (x *Transfer) Checkpoint(_ context.Context, v json.RawMessage) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.saves++
	if x.Fail == nil {
		x.raw = v
	}
	return x.Fail
}

// Seen returns the progress that was reported, and how many checkpoints were made.
func (x *Transfer) Seen() (done []int64, saves int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.done, x.saves
}

// File keeps a checkpoint in a file, as a database would.
type File string

// Progress implements handler.Transfer.
func (f File) Progress(int64) {}

// Resume implements handler.Transfer.
func (f File) Resume() (json.RawMessage, error) {
	b, err := os.ReadFile(string(f))
	if os.IsNotExist(err) {
		return nil, nil
	}
	return b, err
}

// Checkpoint implements handler.Transfer.
func (f File) Checkpoint(_ context.Context, v json.RawMessage) error {
	return os.WriteFile(string(f), v, 0o600)
}

// Memory is a field of this process's memory, in KiB, such as VmRSS and VmHWM; 0 where /proc does
// not tell.
func Memory(field string) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), field+":")
	kib, _ := strconv.Atoi(strings.Fields(after)[0])
	return kib
}
