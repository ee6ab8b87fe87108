package local

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const nonBlocking = syscall.O_NONBLOCK // else a pipe in place of the file would hang

var errReadOnly error = syscall.EROFS

// noLinks tells that the file system has no hard links, or that a security policy forbids them.
func noLinks(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) ||
		errors.Is(err, syscall.EMLINK)
}

// renameNoReplace is renameat2(2) with RENAME_NOREPLACE, within one open folder.
func renameNoReplace(folder *os.Root, from, to string) error {
	f, err := folder.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE); err != nil {
		return os.NewSyscallError("renameat2", err)
	}
	return nil
}
