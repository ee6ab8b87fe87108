package local

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/option"
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to local destinations. It keeps no file open between attempts, and is safe for
// concurrent use.
type Handler struct {
	storage.Sweeping[Config]
	dir   string
	quota int64

	mu    sync.Mutex
	used  map[string]*usage    // by organization, where there is a quota
	swept map[string]time.Time // by folder
}

var (
	_ handler.Handler      = (*Handler)(nil)
	_ handler.ConfigParser = (*Handler)(nil)
	_ handler.Opener       = (*Handler)(nil)
	_ handler.Tester       = (*Handler)(nil)
	_ handler.Describer    = (*Handler)(nil)
	_ handler.Remover      = (*Handler)(nil)
	_ handler.Maintainer   = (*Handler)(nil)
)

// Option adjusts a Handler.
type Option func(*Handler) error

// WithQuota bounds the bytes in each organization's folder. They are counted once a minute, and
// what this process writes in between is added. Several processes together can exceed the quota by
// what they write in a minute.
func WithQuota(bytes int64) Option {
	return func(h *Handler) error {
		if bytes <= 0 {
			return errors.New("local: a quota must be positive")
		}
		h.quota = bytes
		return nil
	}
}

// New returns a handler for delivery.WithHandler that writes below dir. The host creates dir, so
// that a file system that is not mounted is noticed. Open, which delivery.New calls, reports what
// is wrong with the arguments.
func New(dir string, opts ...Option) *Handler {
	h := &Handler{dir: dir, used: map[string]*usage{}, swept: map[string]time.Time{}}
	faults := option.Apply("local", h, opts)
	if !filepath.IsAbs(dir) {
		faults = append(faults, fmt.Errorf("local: the directory %q is not an absolute path", dir))
	}
	h.Sweeping = storage.Sweeping[Config]{Handler: storage.NewHandler(storage.Driver[Config]{
		Type: destination.TypeInfo{
			Type:        Config{}.DestinationType(),
			Title:       "Local folder",
			Description: "Stores each payload as a file in a folder of this service's machine.",
			Schema:      json.RawMessage(schema),
		},
		Open: h.open, Step: "folder", Abandoned: func(Config) time.Duration { return abandoned }, Faults: faults,
	})}
	return h
}

//go:embed schema.json
var schema string

// Bucket returns the folder of a Config for other uses than a delivery, such as a store of
// payloads. There is nothing to close.
func (h *Handler) Bucket(organization string, c Config) (storage.Bucket, error) {
	return h.Sweeping.Bucket(context.Background(), organization, c)
}

// open returns the destination's folder. It opens no file yet.
func (h *Handler) open(_ context.Context, env handler.Env, at storage.Place, c Config) (storage.Bucket, error) {
	organization := at.Organization
	if err := storage.CheckName(organization); err != nil ||
		strings.Contains(organization, "/") || strings.HasPrefix(organization, temporary) {
		return nil, handler.Fail(
			handler.Configuration, errors.New("local: the organization's name cannot be that of a folder"),
		)
	}
	b := &bucket{handler: h, now: env.Now, organization: organization, folder: []string{organization}}
	if c.Folder != "" {
		if err := storage.CheckName(c.Folder); err != nil {
			return nil, handler.Fail(handler.Configuration, fmt.Errorf("local: the folder %w", err))
		}
		b.folder = append(b.folder, strings.Split(c.Folder, "/")...)
	}
	var fileErr, folderErr error
	b.fileMode, fileErr = mode("file_mode", c.FileMode, DefaultFileMode, 0o600)
	b.folderMode, folderErr = mode("folder_mode", c.FolderMode, DefaultFolderMode, 0o700)
	if err := errors.Join(fileErr, folderErr); err != nil {
		return nil, handler.Fail(handler.Configuration, fmt.Errorf("local: %w", err))
	}
	return b, nil
}

// root opens the host's directory. That it is not there is the host's fault, which it mends while
// the items wait.
func (h *Handler) root() (*os.Root, error) {
	root, err := os.OpenRoot(h.dir)
	if err != nil {
		return nil, handler.Fail(
			handler.Internal,
			fmt.Errorf("local: the host's directory cannot be opened, is its file system mounted? %w", err),
		)
	}
	return root, nil
}
