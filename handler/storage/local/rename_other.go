//go:build !linux

package local

import (
	"errors"
	"io/fs"
	"os"
)

const nonBlocking = 0

var errReadOnly = errors.New("read-only file system")

func noLinks(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission)
}

func renameNoReplace(*os.Root, string, string) error { return errors.ErrUnsupported }
