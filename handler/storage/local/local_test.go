package local_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/local"
	"github.com/deliverykit/delivery/payload"
)

func named(name string) local.Config { return local.Config{Naming: storage.Naming{Name: name}} }

// files lists what is below dir, by path.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir)
	req := handlertest.Request(t, h, local.Config{
		Folder: "reports", FileMode: "0604", FolderMode: "0711", Naming: storage.Naming{Name: "{year}/{file}"},
	}, payload.Bytes("Bericht Ä.csv", []byte("a,b\n")))
	req.CreatedAt = time.Date(2026, 11, 30, 23, 59, 0, 0, time.UTC)
	result, err := h.Deliver(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "handlertest", "reports", "2026", "Bericht Ä.csv")
	if got := content(t, path); got != "a,b\n" {
		t.Errorf("%q", got)
	}
	for path, want := range map[string]fs.FileMode{path: 0o604, filepath.Dir(path): fs.ModeDir | 0o711} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	ref := result.Reference
	if ref.ID != "2026/Bericht Ä.csv" || !strings.HasPrefix(ref.URL, "file:///") || ref.Details["size"] != "4" || ref.Details["sha256"] != req.Payload.Info().SHA256 {
		t.Errorf("%+v", ref)
	}

	// The same again, as after a crash, and as another item of the same content.
	for _, attempt := range []int{1, 2} {
		req.Attempt = attempt
		if result, err = h.Deliver(t.Context(), req); err != nil || result.Notes["existing"] == "" {
			t.Errorf("attempt %d: %+v, %v", attempt, result, err)
		}
	}
	// Another content, of the same size and of another.
	for _, text := range []string{"b,a\n", "something else"} {
		req.Payload = handlertest.Content(t, payload.Bytes("Bericht Ä.csv", []byte(text)))
		for _, attempt := range []int{1, 2} {
			req.Attempt = attempt
			_, err = h.Deliver(t.Context(), req)
			if e := handler.Classify(err); err == nil || e.Category != handler.Conflict || e.WillRetry() {
				t.Errorf("%q in place of another content: %v", text, err)
			}
		}
	}
	if got := content(t, path); got != "a,b\n" {
		t.Errorf("was replaced by %q", got)
	}
	if all := files(t, dir); len(all) != 1 {
		t.Errorf("files: %q", all)
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir)
	config := named("latest.txt")
	config.IfExists = storage.Replace
	req := handlertest.Request(t, h, config, payload.Bytes("a", []byte("one")))
	for _, text := range []string{"one", "two", "two", "three"} {
		req.Payload = handlertest.Content(t, payload.Bytes("a", []byte(text)))
		for _, attempt := range []int{1, 2} {
			req.Attempt = attempt
			if _, err := h.Deliver(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		if got := content(t, filepath.Join(dir, "handlertest", "latest.txt")); got != text {
			t.Errorf("%q, want %q", got, text)
		}
	}
}

// Many at once: one makes the file, the others find it.
func TestRaceForOneName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir)
	base := handlertest.Request(t, h, named("one"), payload.JSON(1))
	var group sync.WaitGroup
	var delivered, conflicts atomic.Int32
	for i := range 16 {
		req := *base
		req.Payload = handlertest.Content(t, payload.Bytes("x", []byte(strings.Repeat(fmt.Sprint(i%2), 100_000))))
		group.Go(func() {
			_, err := h.Deliver(t.Context(), &req)
			switch {
			case err == nil:
				delivered.Add(1)
			case handler.Classify(err).Category == handler.Conflict:
				conflicts.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	group.Wait()
	if delivered.Load() != 8 || conflicts.Load() != 8 {
		t.Errorf("%d delivered and %d conflicts, want 8 of each", delivered.Load(), conflicts.Load())
	}
	if all := files(t, dir); len(all) != 1 {
		t.Errorf("files: %q", all)
	}
}

// A payload that breaks off, or is not what was accepted, leaves nothing.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir)
	req := handlertest.Request(t, h, local.Config{}, payload.JSON(1))
	for name, r := range map[string]io.Reader{
		"breaks off": io.MultiReader(strings.NewReader("abc"), failing{errors.New("away")}),
		"wraps EOF":  io.MultiReader(strings.NewReader("abc"), failing{fmt.Errorf("away: %w", io.EOF)}),
		"cut":        io.MultiReader(strings.NewReader("abc"), failing{io.ErrUnexpectedEOF}),
	} {
		req.Payload = payload.NewContent(payload.Info{Size: -1}, func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(r), nil
		})
		_, err := h.Deliver(t.Context(), req)
		if e := handler.Classify(err); err == nil || e.Category != handler.Internal || !e.WillRetry() {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	req.Payload = payload.NewContent(payload.Info{Size: -1}, func(context.Context, int64) (io.ReadCloser, error) {
		return io.NopCloser(endless(func() { cancel(handler.ErrLeaseLost) })), nil
	})
	if _, err := h.Deliver(ctx, req); !errors.Is(err, handler.ErrLeaseLost) {
		t.Error(err)
	}
	if all := files(t, dir); len(all) != 0 {
		t.Errorf("left: %q", all)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type endless func()

func (e endless) Read(b []byte) (int, error) { e(); return len(b), nil }

func TestQuota(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir, local.WithQuota(1000))
	deliver := func(organization string, size int, known bool) error {
		req := handlertest.Request(t, h, local.Config{}, payload.Bytes("a", make([]byte, size)))
		req.Organization = organization
		if !known {
			inner := req.Payload
			req.Payload = payload.NewContent(payload.Info{Size: -1}, func(ctx context.Context, _ int64) (io.ReadCloser, error) { return inner.Open(ctx) })
		}
		_, err := h.Deliver(t.Context(), req)
		return err
	}
	for i, c := range []struct {
		organization string
		size         int
		known, fits  bool
	}{{"a", 600, true, true}, {"a", 401, true, false}, {"a", 401, false, false}, {"b", 1001, false, false}, {"b", 1000, false, true}, {"a", 400, false, true}, {"a", 1, true, false}} {
		err := deliver(c.organization, c.size, c.known)
		if c.fits != (err == nil) {
			t.Errorf("%d: %v", i, err)
		}
		if e := handler.Classify(err); err != nil && (e.Category != handler.Capacity || !e.WillRetry()) {
			t.Errorf("%d: %s: %v", i, e.Category, err)
		}
	}
	// Counted again after a minute, by whoever made room.
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	later := handlertest.Env(t)
	later.Now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	if err := h.Open(later); err != nil {
		t.Fatal(err)
	}
	req := handlertest.Request(t, local.New(dir), local.Config{}, payload.Bytes("a", make([]byte, 900)))
	req.Organization = "a"
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Error(err)
	}
	if all := files(t, dir); len(all) != 2 {
		t.Errorf("files: %q", all)
	}
}

func TestStaleTemporaryFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	now := time.Now()
	put := func(name string, age time.Duration) {
		path := filepath.Join(dir, "handlertest", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	put("in/.delivery-old.tmp", 26*time.Hour)
	put("in/.delivery-fresh.tmp", 24*time.Hour)
	put("in/old.tmp", 26*time.Hour)
	put("deep/er/.delivery-old.tmp", 26*time.Hour)

	h := local.New(dir)
	req := handlertest.Request(t, h, named("in/{item}"), payload.JSON(1))
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	want := []string{"handlertest/deep/er/.delivery-old.tmp", "handlertest/in/.delivery-fresh.tmp", "handlertest/in/" + req.ItemID, "handlertest/in/old.tmp"}
	if all := files(t, dir); strings.Join(all, " ") != strings.Join(want, " ") {
		t.Errorf("after a delivery: %q", all)
	}
	err := h.Maintain(t.Context(), &handler.MaintainRequest{Organization: "handlertest", Config: req.Config})
	if all := files(t, dir); err != nil || strings.Join(all, " ") != strings.Join(want[1:], " ") {
		t.Errorf("after Maintain: %q, %v", all, err)
	}
}

// A handler whose clock is ahead of the file system's does not take for stale what another attempt
// is writing.
func TestClockAhead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir)
	env := handlertest.Env(t)
	ahead := 365 * 24 * time.Hour
	env.Now = func() time.Time {
		ahead += 2 * time.Hour // each look finds that it is time to sweep
		return time.Now().Add(ahead)
	}
	req := handlertest.Request(t, h, named("in/{item}"), payload.JSON(1))
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	other := *req
	other.ItemID = "other"
	writing := *req
	writing.Payload = payload.NewContent(payload.Info{Size: 1}, func(ctx context.Context, _ int64) (io.ReadCloser, error) {
		_, err := h.Deliver(ctx, &other)
		err = errors.Join(err, h.Maintain(ctx, &handler.MaintainRequest{Organization: "handlertest", Config: req.Config}))
		return io.NopCloser(strings.NewReader("x")), err
	})
	if _, err := h.Deliver(t.Context(), &writing); err != nil {
		t.Error(err)
	}
	if all := files(t, dir); len(all) != 2 {
		t.Errorf("files: %q", all)
	}
}

func TestOrganizations(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir)
	req := handlertest.Request(t, h, local.Config{}, payload.JSON(1))
	for _, name := range []string{"", "..", ".", "a/b", `a\b`, "a\x00", ".delivery-x", strings.Repeat("x", 256)} {
		req.Organization = name
		if _, err := h.Deliver(t.Context(), req); handler.Classify(err) == nil || handler.Classify(err).Category != handler.Configuration {
			t.Errorf("%q: %v", name, err)
		}
	}
	// One that is a link to another's.
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "alias")); err != nil {
		t.Fatal(err)
	}
	req.Organization = "alias"
	if _, err := h.Deliver(t.Context(), req); err == nil {
		t.Error("a link to another organization is followed")
	}
	if all := files(t, dir); len(all) != 1 { // the link
		t.Errorf("files: %q", all)
	}
}

// What stands in place of the file is never followed, read or replaced.
func TestNoPlainFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "handlertest"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "handlertest", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "handlertest", "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := local.New(dir)
	for _, name := range []string{"link", "folder"} {
		req := handlertest.Request(t, h, named(name), payload.JSON(1)) // the content that the link leads to
		for _, attempt := range []int{1, 2} {
			req.Attempt = attempt
			_, err := h.Deliver(t.Context(), req)
			if e := handler.Classify(err); err == nil || e.Category != handler.Conflict {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if got := content(t, outside); got != "1" {
		t.Errorf("%q", got)
	}
}

func TestHostsFault(t *testing.T) {
	t.Parallel()
	if err := local.New("relative", nil, local.WithQuota(0)).Open(handler.Env{}); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("%v", err)
	}
	h := local.New(filepath.Join(t.TempDir(), "unmounted"))
	req := handlertest.Request(t, h, local.Config{}, payload.JSON(1))
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Internal || !e.WillRetry() {
		t.Error(err)
	}
}

func TestConnectionTestLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := local.New(dir)
	handlertest.Open(t, h)
	for _, name := range []string{"", "fixed/latest.csv"} {
		parsed, _ := handlertest.Parse(t, h, local.Config{Folder: "in", Naming: storage.Naming{Name: name}})
		report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: parsed})
		if err != nil || !report.OK || len(report.Steps) != 5 {
			t.Errorf("%+v, %v", report, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "acme", "in"))
	if err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
