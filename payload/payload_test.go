package payload_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/payload"
)

func content(b []byte, info payload.Info) *payload.Content {
	return payload.NewContent(info, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[min(offset, int64(len(b))):])), nil
	})
}

func described(b []byte) payload.Info {
	sum := sha256.Sum256(b)
	return payload.Info{Size: int64(len(b)), SHA256: hex.EncodeToString(sum[:])}
}

func read(c *payload.Content, offset int64) ([]byte, error) {
	r, err := c.OpenAt(context.Background(), offset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Content that is as described can be read, from anywhere; any other is found out.
func TestContentIsVerified(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "content")
		info := described(b)
		offset := rapid.Int64Range(0, info.Size).Draw(t, "offset")
		if got, err := read(content(b, info), offset); err != nil || !bytes.Equal(got, b[offset:]) {
			t.Fatalf("%d of %d bytes: %v", len(got), len(b), err)
		}
		stored := bytes.Clone(b)
		switch rapid.IntRange(0, 2).Draw(t, "fault") {
		case 0:
			stored = append(stored, 1)
		case 1:
			if len(stored) == 0 {
				return
			}
			stored = stored[1:]
		case 2:
			if len(stored) == 0 {
				return
			}
			stored[rapid.IntRange(0, len(stored)-1).Draw(t, "at")]++
		}
		if _, err := read(content(stored, info), 0); !errors.Is(err, payload.ErrCorrupt) {
			t.Fatalf("%x for %x: %v", stored, b, err)
		}
		if len(stored) == len(b) || offset > int64(len(stored)) {
			return // a hash of a part cannot be checked, and what is not there cannot be opened
		}
		if _, err := read(content(stored, info), offset); !errors.Is(err, payload.ErrCorrupt) {
			t.Fatalf("from %d, %d bytes for %d: %v", offset, len(stored), len(b), err)
		}
	})
}

func TestOpenAtOutside(t *testing.T) {
	t.Parallel()
	c := content([]byte("abc"), described([]byte("abc")))
	for _, offset := range []int64{-1, 4} {
		if _, err := read(c, offset); err == nil {
			t.Errorf("offset %d is accepted", offset)
		}
	}
	if b, err := read(content([]byte("abc"), payload.Info{Size: -1}), 2); err != nil || string(b) != "c" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestReadAll(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	b := bytes.Repeat([]byte("x"), 5000)
	for _, info := range []payload.Info{described(b), {Size: -1}} {
		if got, err := content(b, info).ReadAll(ctx, 5000); err != nil || !bytes.Equal(got, b) {
			t.Errorf("size %d: %d bytes, %v", info.Size, len(got), err)
		}
		if got, err := content(b, info).ReadAll(ctx, 4999); !errors.Is(err, payload.ErrTooLarge) || got != nil {
			t.Errorf("size %d, above the limit: %d bytes, %v", info.Size, len(got), err)
		}
	}
	if got, err := content(b[:100], described(b)).ReadAll(ctx, 1<<20); !errors.Is(err, payload.ErrCorrupt) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	away := errors.New("away")
	c := payload.NewContent(payload.Info{Size: 1}, func(context.Context, int64) (io.ReadCloser, error) { return nil, away })
	if _, err := c.ReadAll(ctx, 10); !errors.Is(err, away) {
		t.Error(err)
	}
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("boom") }

func TestWhatCannotBeDelivered(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]payload.Payload{
		"channel":           payload.JSON(make(chan int)),
		"panic":             payload.JSON(panicking{}),
		"nil reader":        payload.Reader("a", nil),
		"nil writer":        payload.Writer("a", nil),
		"ref without name":  payload.Ref("", "a"),
		"ref without ref":   payload.Ref("a", ""),
		"folder":            payload.Bytes("a/b", nil),
		"windows folder":    payload.Bytes(`a\b`, nil),
		"line end":          payload.Bytes("a\r\nb", nil),
		"NUL":               payload.Bytes("a\x00", nil),
		"content type":      payload.Bytes("a", nil).As("a", "text; charset"),
		"type with newline": payload.Bytes("a", nil).As("a", "text/plain\r\nX: y"),
	} {
		if p.Err() == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := p.WriteTo(io.Discard); err == nil {
			t.Errorf("%s: is written", name)
		}
		if p.IsZero() {
			t.Errorf("%s: is taken for none at all", name)
		}
	}
	if _, err := payload.Writer("a", func(io.Writer) error { panic("boom") }).WriteTo(io.Discard); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("a panic of the write function: %v", err)
	}
	if _, err := payload.Ref("a", "b").WriteTo(io.Discard); err == nil {
		t.Error("a Ref is written")
	}
	if !(payload.Payload{}).IsZero() {
		t.Error("the zero payload is not zero")
	}
}

func TestNamesAndTypes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		p                       payload.Payload
		file, contentType, text string
	}{
		"json":     {payload.JSON([]int{1}), "", "application/json", "[1]"},
		"bytes":    {payload.Bytes("a.html", []byte("x")), "a.html", "text/html; charset=utf-8", "x"},
		"unknown":  {payload.Bytes("a.unknown-ending", []byte("x")), "a.unknown-ending", "application/octet-stream", "x"},
		"no name":  {payload.Bytes("", nil), "", "application/octet-stream", ""},
		"reader":   {payload.Reader("a.png", strings.NewReader("x")), "a.png", "image/png", "x"},
		"writer":   {payload.Writer("a", func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err }), "a", "application/octet-stream", "x"},
		"file":     {payload.File(path), "report.json", "application/json", "{}"},
		"as":       {payload.JSON(1).As("one", "text/x-number"), "one", "text/x-number", "1"},
		"as named": {payload.JSON(1).As("one.txt", ""), "one.txt", "application/json", "1"},
	} {
		var b bytes.Buffer
		n, err := c.p.WriteTo(&b)
		if err != nil || c.p.Name() != c.file || c.p.ContentType() != c.contentType || b.String() != c.text || n != int64(len(c.text)) {
			t.Errorf("%s: %q, %q, %q, %d, %v", name, c.p.Name(), c.p.ContentType(), b.String(), n, err)
		}
	}
	if _, err := payload.File(path + ".missing").WriteTo(io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if source, ref, ok := payload.Ref("bucket", "key").Ref(); source != "bucket" || ref != "key" || !ok {
		t.Error(source, ref, ok)
	}
	if _, ok := payload.Reader("a", strings.NewReader("")).Bytes(); ok {
		t.Error("a reader is in memory")
	}
}

func Example() {
	export := payload.Writer("users.csv", func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "id,name\n1,Ada")
		return err
	})
	fmt.Println(export.Name(), export.ContentType())
	_, err := export.WriteTo(os.Stdout)
	fmt.Println(err)
	fmt.Println(payload.JSON(func() {}).Err())
	// Output:
	// users.csv text/csv; charset=utf-8
	// id,name
	// 1,Ada
	// <nil>
	// payload: a func() cannot be encoded as JSON: json: unsupported type: func()
}
