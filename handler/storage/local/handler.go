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
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to local destinations. It keeps no file open between attempts, and is safe for concurrent use.
type Handler struct {
	handler.Parser[Config]
	dir   string
	quota int64
	errs  []error
	now   func() time.Time

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

// WithQuota bounds what each organization may have in its folder, in bytes: what is there is counted once a minute, and
// what this process writes in between is added. Several processes together can pass it by what they write in a minute.
func WithQuota(bytes int64) Option {
	return func(h *Handler) error {
		if bytes <= 0 {
			return errors.New("local: a quota must be positive")
		}
		h.quota = bytes
		return nil
	}
}

// New returns a handler for delivery.WithHandler that writes below dir, which must be there: the host makes it, so that a
// file system which is not mounted is noticed. What is wrong with the arguments is reported by Open, which delivery.New
// calls.
func New(dir string, opts ...Option) *Handler {
	h := &Handler{dir: dir, now: time.Now, used: map[string]*usage{}, swept: map[string]time.Time{}}
	if !filepath.IsAbs(dir) {
		h.errs = append(h.errs, fmt.Errorf("local: the directory %q is not an absolute path", dir))
	}
	for _, o := range opts {
		if o == nil {
			h.errs = append(h.errs, errors.New("local: an option is nil"))
		} else if err := o(h); err != nil {
			h.errs = append(h.errs, err)
		}
	}
	return h
}

// Open implements handler.Opener.
func (h *Handler) Open(env handler.Env) error {
	if env.Now != nil {
		h.now = env.Now
	}
	return errors.Join(h.errs...)
}

// Deliver implements handler.Handler.
func (h *Handler) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	b, err := h.bucket(req.Organization, config)
	if err != nil {
		return nil, err
	}
	return storage.Target{Bucket: b, Naming: config.Naming}.Deliver(ctx, req)
}

// Bucket returns the folder of a Config for other uses than a delivery, such as a store of payloads. There is nothing to
// close.
func (h *Handler) Bucket(organization string, c Config) (storage.Bucket, error) {
	if err := c.Validate(); err != nil {
		return nil, handler.Fail(handler.Configuration, fmt.Errorf("local: %w", err))
	}
	return h.bucket(organization, c)
}

// Test implements handler.Tester: it writes, reads and deletes a file.
func (h *Handler) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	b, err := h.bucket(req.Organization, config)
	if err != nil {
		return &destination.TestReport{Steps: []destination.TestStep{{Name: "folder", Finding: err.Error()}}}, nil //nolint:nilerr // it is the finding
	}
	return storage.Target{Bucket: b, Naming: config.Naming}.Test(ctx, req, h.now()), nil
}

// Maintain implements handler.Maintainer: it removes what killed processes left behind more than a day ago.
func (h *Handler) Maintain(ctx context.Context, req *handler.MaintainRequest) error {
	config, ok := req.Config.(Config)
	if !ok {
		return wrongConfig(req.Config)
	}
	b, err := h.bucket(req.Organization, config)
	if err != nil {
		return err
	}
	_, err = b.Sweep(ctx, staleBefore(), func(string) bool { return true })
	return err
}

// Retention implements handler.Remover.
func (h *Handler) Retention(config any) time.Duration {
	c, _ := config.(Config)
	return c.Expiry.Retention()
}

// Remove implements handler.Remover.
func (h *Handler) Remove(ctx context.Context, req *handler.RemoveRequest) (handler.Removal, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return handler.NotRemoved, wrongConfig(req.Config)
	}
	b, err := h.bucket(req.Organization, config)
	if err != nil {
		return handler.NotRemoved, err
	}
	return storage.Remove(ctx, b, req)
}

//go:embed schema.json
var schema string

// Describe implements handler.Describer.
func (h *Handler) Describe() destination.TypeInfo {
	return destination.TypeInfo{
		Type:        Config{}.DestinationType(),
		Family:      "storage",
		Title:       "Local folder",
		Description: "Stores each payload as a file in a folder of this service's machine.",
		Schema:      json.RawMessage(schema),
	}
}

func wrongConfig(config any) error {
	return handler.Fail(handler.Configuration, fmt.Errorf("local: the config is a %T, not a %T", config, Config{}))
}

// bucket is the destination's folder. It opens nothing yet.
func (h *Handler) bucket(organization string, c Config) (*bucket, error) {
	if len(h.errs) > 0 {
		return nil, handler.Fail(handler.Internal, errors.Join(h.errs...))
	}
	if err := storage.CheckName(organization); err != nil || strings.Contains(organization, "/") || strings.HasPrefix(organization, temporary) {
		return nil, handler.Fail(handler.Configuration, errors.New("local: the organization's name cannot be that of a folder"))
	}
	b := &bucket{handler: h, organization: organization, folder: []string{organization}}
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

// root opens the host's directory. That it is not there is the host's fault, which it mends while the items wait.
func (h *Handler) root() (*os.Root, error) {
	root, err := os.OpenRoot(h.dir)
	if err != nil {
		return nil, handler.Fail(handler.Internal, fmt.Errorf("local: the host's directory cannot be opened, is its file system mounted? %w", err))
	}
	return root, nil
}
