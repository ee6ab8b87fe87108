package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// memory is a bucket that records what is asked of it, and fails as told.
type memory struct {
	mu      sync.Mutex
	objects map[string]object
	calls   []string
	fail    map[string]error // by call
	hash    bool             // Stat knows the SHA-256
}

type object struct {
	content []byte
	item    string
}

func newMemory() *memory { return &memory{objects: map[string]object{}, fail: map[string]error{}} }

func (m *memory) call(name string) error {
	m.calls = append(m.calls, name)
	return m.fail[name]
}

func (m *memory) Put(ctx context.Context, up *storage.Upload) (storage.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("put"); err != nil {
		return storage.Object{}, err
	}
	if _, ok := m.objects[up.Name]; ok && !up.Replace {
		return storage.Object{}, fmt.Errorf("memory: %w", storage.ErrExists)
	}
	r, err := up.Open(ctx, 0)
	if err != nil {
		return storage.Object{}, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return storage.Object{}, err
	}
	m.objects[up.Name] = object{b, up.Item}
	return storage.Object{Name: up.Name, Size: int64(len(b)), ETag: "e", Version: "v", Checksum: "crc:c", URL: "memory://" + up.Name}, nil
}

func (m *memory) Stat(_ context.Context, name string) (storage.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("stat"); err != nil {
		return storage.Object{}, err
	}
	o, ok := m.objects[name]
	if !ok {
		return storage.Object{}, storage.ErrNotFound
	}
	found := storage.Object{Name: name, Size: int64(len(o.content)), Item: o.item}
	if m.hash {
		sum := sha256.Sum256(o.content)
		found.SHA256 = hex.EncodeToString(sum[:])
	}
	return found, nil
}

func (m *memory) Get(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("get"); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(m.objects[name].content[offset:])), nil
}

func (m *memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("delete"); err != nil {
		return err
	}
	delete(m.objects, name)
	return nil
}

func (m *memory) List(context.Context, string, func(storage.Object) error) error { return nil }

var denied = handler.Fail(handler.Authentication, errors.New("memory: denied"))

func TestDeliver(t *testing.T) {
	t.Parallel()
	const text = "content"
	other := strings.Repeat("x", len(text))
	for name, c := range map[string]struct {
		there    string // content of the object that is there; "" for none
		item     string
		fail     map[string]error
		hash     bool
		unknown  bool // size and hash of the payload
		replace  bool
		attempt  int
		calls    string
		category handler.Category
		existing bool
	}{
		"first":                   {calls: "put"},
		"again, not there":        {attempt: 2, calls: "stat put"},
		"again, there":            {attempt: 2, there: text, hash: true, calls: "stat", existing: true},
		"lost answer":             {there: text, hash: true, calls: "put stat", existing: true},
		"no hash":                 {there: text, calls: "put stat get", existing: true},
		"unknown size":            {unknown: true, calls: "stat put"},
		"unknown, there":          {unknown: true, there: text, calls: "stat get", existing: true},
		"unknown, another":        {unknown: true, there: other, calls: "stat get", category: handler.Conflict},
		"unknown, longer":         {unknown: true, there: text + "x", hash: true, calls: "stat", category: handler.Conflict},
		"another":                 {there: other, hash: true, calls: "put stat", category: handler.Conflict},
		"another size":            {there: "x", calls: "put stat", category: handler.Conflict},
		"another, replace":        {there: other, hash: true, replace: true, calls: "put"},
		"another, replace again":  {there: other, hash: true, replace: true, attempt: 2, calls: "stat put"},
		"the same, replace again": {there: text, hash: true, replace: true, attempt: 2, calls: "stat", existing: true},
		"write only":              {attempt: 2, fail: map[string]error{"stat": denied}, calls: "stat put"},
		"write only, replace":     {attempt: 2, there: other, replace: true, fail: map[string]error{"get": denied}, calls: "stat get put"},
		"write only, there":       {there: text, fail: map[string]error{"stat": denied}, calls: "put stat", category: handler.Authentication},
		"unreadable, ours":        {there: text, item: "ours", fail: map[string]error{"get": denied}, calls: "put stat get", existing: true},
		"unreadable, theirs":      {there: text, item: "theirs", fail: map[string]error{"get": denied}, calls: "put stat get", category: handler.Authentication},
		"away":                    {attempt: 2, fail: map[string]error{"stat": handler.Fail(handler.Network, io.EOF)}, calls: "stat", category: handler.Network},
		"removed meanwhile":       {fail: map[string]error{"put": fmt.Errorf("x: %w", storage.ErrExists)}, calls: "put stat", category: handler.Remote},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			m.fail, m.hash = c.fail, c.hash
			req := request("a.txt", "text/plain")
			req.ItemID, req.Attempt = "ours", max(1, c.attempt)
			req.Payload = handlertest.Content(t, payload.Bytes("a.txt", []byte(text)))
			if c.unknown {
				known := req.Payload
				req.Payload = payload.NewContent(payload.Info{Name: "a.txt", Size: -1}, known.OpenAt)
			}
			if c.there != "" {
				m.objects["a.txt"] = object{[]byte(c.there), c.item}
			}
			target := storage.Target{Bucket: m, Naming: storage.Naming{Name: "{file}"}}
			if c.replace {
				target.Naming.IfExists = storage.Replace
			}
			result, err := target.Deliver(t.Context(), req)
			if calls := strings.Join(m.calls, " "); calls != c.calls {
				t.Errorf("calls: %s, want %s", calls, c.calls)
			}
			if c.category != 0 {
				e := handler.Classify(err)
				if err == nil || e.Category != c.category {
					t.Errorf("%v, want %s", err, c.category)
				}
				if got := string(m.objects["a.txt"].content); got != c.there {
					t.Errorf("%q has become %q", c.there, got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := string(m.objects["a.txt"].content); got != text {
				t.Errorf("%q", got)
			}
			if (result.Notes["existing"] != "") != c.existing || result.Reference.ID != "a.txt" || result.Reference.Details["size"] != "7" {
				t.Errorf("%+v", result)
			}
			if d := result.Reference.Details; !c.existing && (d["etag"] != "e" || d["version"] != "v" || d["checksum"] != "crc:c" || result.Reference.URL != "memory://a.txt") {
				t.Errorf("%+v", result.Reference)
			}
		})
	}
}

func TestCanary(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail   string
		steps  string
		target storage.Naming
	}{
		"works":       {steps: "name+ write+ read+ create only if absent+ delete+"},
		"replacing":   {steps: "name+ write+ read+ delete+", target: storage.Naming{IfExists: storage.Replace}},
		"fixed name":  {steps: "name+ write+ read+ create only if absent+ delete+", target: storage.Naming{Name: "in/latest"}},
		"no write":    {fail: "put", steps: "name+ write-"},
		"no stat":     {fail: "stat", steps: "name+ write+ read- create only if absent+ delete+"},
		"no read":     {fail: "get", steps: "name+ write+ read- create only if absent+ delete+"},
		"no delete":   {fail: "delete", steps: "name+ write+ read+ create only if absent+ delete-"},
		"no template": {steps: "name-", target: storage.Naming{Name: "{"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			m.fail[c.fail] = denied
			m.objects["in/latest"] = object{content: []byte("theirs")}
			report := storage.Target{Bucket: m, Naming: c.target}.Test(t.Context(), &handler.TestRequest{Organization: "acme"}, time.Now())
			var steps []string
			for _, s := range report.Steps {
				mark := "+"
				if !s.OK {
					mark = "-"
				}
				steps = append(steps, s.Name+mark)
				if !s.OK && s.Finding == "" {
					t.Errorf("%s has no finding", s.Name)
				}
			}
			if got := strings.Join(steps, " "); got != c.steps || report.OK == strings.Contains(got, "-") {
				t.Errorf("%t: %s, want %s", report.OK, got, c.steps)
			}
			left := 1
			if c.fail == "delete" {
				left = 2
			}
			if len(m.objects) != left || string(m.objects["in/latest"].content) != "theirs" {
				t.Errorf("left: %v", m.objects)
			}
		})
	}
	before := storage.Target{Bucket: newMemory()}.Test(t.Context(), &handler.TestRequest{}, time.Now(), destination.TestStep{Name: "credentials", Finding: "none"})
	if before.OK || len(before.Steps) != 1 {
		t.Errorf("goes on after a failed step: %+v", before)
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	good := storage.Attributes{ContentType: "text/csv; charset=utf-8", Metadata: map[string]string{"Team": "a b"}, Tags: map[string]string{"größe": "1 + 2"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := storage.Attributes{
		ContentType: "text\r\nX: y",
		Metadata:    map[string]string{"a b": "x", "Delivery-Item": "x", "c": "ä", "d": "a\r\nb", "e": strings.Repeat("x", 1500)},
		Tags:        map[string]string{"aws:x": "", "a": "b;c", "": "x"},
	}
	var v *destination.ValidationError
	if !errors.As(destination.NewValidationError("", bad.Validate()), &v) {
		t.Fatal("accepted")
	}
	paths := map[string]bool{}
	for _, f := range v.Fields {
		paths[f.Path] = true
	}
	for _, want := range []string{"content_type", "metadata.a b", "metadata.Delivery-Item", "metadata.c", "metadata.d", "metadata", "tags.aws:x", "tags.a", "tags"} {
		if !paths[want] {
			t.Errorf("%s is not named: %v", want, v)
		}
	}
	up := &storage.Upload{Item: "i", SHA256: "s", Metadata: map[string]string{"Team": "t"}}
	if m := up.AllMetadata(); m["team"] != "t" || m[storage.MetadataItem] != "i" || m[storage.MetadataSHA256] != "s" {
		t.Errorf("%v", m)
	}
}
