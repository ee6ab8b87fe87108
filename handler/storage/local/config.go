package local

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/storage"
)

// The modes of what is made, where a Config gives none.
const (
	DefaultFileMode   fs.FileMode = 0o640
	DefaultFolderMode fs.FileMode = 0o750
)

// Config is the configuration of a local destination. Nothing in it is required.
type Config struct {
	// Folder is the folder for the files, within the organization's own, for example
	// "reports/daily". It is created if it does not exist.
	Folder string `json:"folder,omitempty"`
	storage.Naming
	storage.Expiry
	// FileMode is the mode of the files, in octal. The owner must be able to read and write.
	// Default: "0640".
	FileMode string `json:"file_mode,omitempty"`
	// FolderMode is the mode of the folders that are created, in octal. The owner must have all
	// permissions. Default: "0750".
	FolderMode string `json:"folder_mode,omitempty"`
}

// DestinationType returns "local".
func (Config) DestinationType() string { return "local" }

// Validate reports every faulty field.
func (c Config) Validate() error {
	errs := []error{c.Naming.Validate(), c.Expiry.Validate(0)}
	if c.Folder != "" {
		if err := storage.CheckName(c.Folder); err != nil {
			errs = append(errs, destination.Invalid("folder", "%v", err))
		} else if strings.HasPrefix(c.Folder, temporary) || strings.Contains(c.Folder, "/"+temporary) {
			errs = append(errs,
				destination.Invalid("folder", "has a segment that begins with %q, which is "+
					"reserved", temporary))
		}
	}
	_, fileErr := mode("file_mode", c.FileMode, DefaultFileMode, 0o600)
	_, folderErr := mode("folder_mode", c.FolderMode, DefaultFolderMode, 0o700)
	return errors.Join(append(errs, fileErr, folderErr)...)
}

// Layout implements storage.Config.
func (c Config) Layout() storage.Layout { return storage.Layout{Naming: c.Naming, Expiry: c.Expiry} }

func mode(path, text string, otherwise, needed fs.FileMode) (fs.FileMode, error) {
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseUint(text, 8, 32)
	m := fs.FileMode(n)
	switch {
	case err != nil || m&^fs.ModePerm != 0:
		return 0, destination.Invalid(
			path, `is not a mode; expected for example "0640": a zero and three octal digits, and no set-user-id`,
		)
	case m&needed != needed:
		return 0, destination.Invalid(path, "must contain %04o: the owner works with it", uint32(needed))
	}
	return m, nil
}
