package handler_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

var nameRule = regexp.MustCompile(`^[a-z]+$`)

// kept is a Transfer that records.
type kept struct {
	done []int64
	raw  json.RawMessage
	err  error
}

func (k *kept) Progress(done int64)              { k.done = append(k.done, done) }
func (k *kept) Resume() (json.RawMessage, error) { return k.raw, k.err }
func (k *kept) Checkpoint(_ context.Context, v json.RawMessage) error {
	k.raw = v
	return k.err
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var alone handler.Request
	alone.Progress(1)
	var n int
	if ok, err := alone.Resume(&n); ok || err != nil {
		t.Error(ok, err)
	}
	if err := alone.Checkpoint(ctx, 1); err != nil {
		t.Error(err)
	}

	k := &kept{}
	req := handler.Request{Transfer: k}
	if ok, err := req.Resume(&n); ok || err != nil {
		t.Error("a checkpoint before there is one", err)
	}
	if err := req.Checkpoint(ctx, 42); err != nil {
		t.Error(err)
	}
	if ok, err := req.Resume(&n); !ok || err != nil || n != 42 {
		t.Error(ok, err, n)
	}
	var wrong []string
	if _, err := req.Resume(&wrong); err == nil {
		t.Error("a checkpoint of another shape is accepted")
	}
	if err := req.Checkpoint(ctx, make(chan int)); err == nil {
		t.Error("a checkpoint that JSON cannot hold is accepted")
	}
	k.err = handler.ErrLeaseLost
	if err := req.Checkpoint(ctx, 1); !errors.Is(err, handler.ErrLeaseLost) {
		t.Error(err)
	}
	if _, err := req.Resume(&n); !errors.Is(err, handler.ErrLeaseLost) {
		t.Error(err)
	}
}

func TestOpenReportsProgress(t *testing.T) {
	t.Parallel()
	k := &kept{}
	content := payload.NewContent(payload.Info{Size: 10}, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader([]byte("0123456789")[offset:])), nil
	})
	req := handler.Request{Payload: content, Transfer: k}
	r, err := req.Open(context.Background(), 4)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := make([]byte, 2)
	var text []byte
	for {
		n, err := r.Read(b)
		text = append(text, b[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if string(text) != "456789" || !slices.Equal(k.done, []int64{6, 8, 10}) {
		t.Errorf("%q, progress %v", text, k.done)
	}
}

func TestOpenClassifies(t *testing.T) {
	t.Parallel()
	short := payload.NewContent(payload.Info{Size: 10}, func(context.Context, int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader([]byte("01234"))), nil
	})
	r, err := (&handler.Request{Payload: short}).Open(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); handler.Classify(err).Category != handler.Internal || !errors.Is(err, payload.ErrCorrupt) {
		t.Error(err)
	}
	gone := payload.NewContent(payload.Info{Size: 10}, func(context.Context, int64) (io.ReadCloser, error) { return nil, fs.ErrNotExist })
	if _, err := (&handler.Request{Payload: gone}).Open(context.Background(), 0); handler.Classify(err).WillRetry() {
		t.Error(err)
	}
}

func TestFuncWithForeignConfig(t *testing.T) {
	t.Parallel()
	h := handler.Func(func(context.Context, *handler.Request, table) (*handler.Result, error) { return nil, nil })
	_, err := h.Deliver(context.Background(), &handler.Request{Config: 17})
	if e := handler.Classify(err); e == nil || e.Category != handler.Configuration {
		t.Error(err)
	}
}

// A host's own handler: lines of a log, with a config that is checked when it is saved.
func ExampleFunc() {
	type config struct {
		Prefix string             `json:"prefix"`
		Token  destination.Secret `json:"token"`
	}
	console := handler.Func(func(ctx context.Context, req *handler.Request, c config) (*handler.Result, error) {
		line, err := req.Payload.ReadAll(ctx, 1<<20)
		if err != nil {
			return nil, err
		}
		fmt.Printf("%s%s\n", c.Prefix, line)
		return &handler.Result{Reference: handler.Reference{ID: req.MessageID}}, nil
	})

	parsed, err := console.(handler.ConfigParser).ParseConfig(json.RawMessage(`{"prefix":"audit: ","token":"t"}`))
	fmt.Printf("%+v %v\n", parsed, err)
	result, err := console.Deliver(context.Background(), &handler.Request{
		MessageID: "m-1", Config: parsed,
		Payload: payload.NewContent(payload.Info{Size: -1}, func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader([]byte(`{"user":"ada"}`))), nil
		}),
	})
	fmt.Println(result.Reference.ID, err)
	// Output:
	// {Prefix:audit:  Token:[redacted]} <nil>
	// audit: {"user":"ada"}
	// m-1 <nil>
}

func ExampleFromHTTP() {
	err := handler.FromHTTP(429, map[string][]string{"Retry-After": {"30"}}, nil)
	e := handler.Classify(err)
	fmt.Println(e.Category, e.RetryAfter, e.WillRetry(), e)
	// Output: rate limit 30s true the other side answered 429 Too Many Requests
}
