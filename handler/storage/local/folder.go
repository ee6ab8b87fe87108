package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/deliverykit/delivery/handler"
)

// errLink says that a symbolic link, or something else that is no folder, stands where a folder
// belongs.
var errLink = errors.New("is a symbolic link or not a folder, and is not followed; remove it")

// descend opens the folder that segments lead to, one after the other. None may be a symbolic link:
// os.Root keeps each step below the folder it starts from, and what was opened is compared with
// what the name stands for, as a link to a sibling would stay below. Missing folders are made if
// make says so, and flushed into their parents. The caller closes the result.
func descend(root *os.Root, segments []string, create bool, mode fs.FileMode) (*os.Root, error) {
	current := root
	for i, segment := range segments {
		next, err := step(current, segment, create, mode)
		if i > 0 {
			_ = current.Close()
		}
		if err != nil {
			return nil, err
		}
		current = next
	}
	return current, nil
}

func step(parent *os.Root, name string, create bool, mode fs.FileMode) (*os.Root, error) {
	for range 10 { // a folder can be removed between the two: Delete prunes empty ones
		next, err := parent.OpenRoot(name)
		switch {
		case err == nil:
			if err := same(parent, next, name); err != nil {
				_ = next.Close()
				return nil, err
			}
			return next, nil
		case !errors.Is(err, fs.ErrNotExist):
			if info, statErr := parent.Lstat(name); statErr == nil && !info.IsDir() {
				return nil, linked(name)
			}
			return nil, failed("open the folder "+quote(name), err)
		case !create:
			return nil, err
		}
		if info, err := parent.Lstat(name); err == nil && !info.IsDir() {
			return nil, linked(name) // that leads nowhere
		}
		switch err := parent.Mkdir(name, mode); {
		case err == nil:
			if err := chmod(parent, name, mode); err != nil {
				return nil, err
			}
			if err := flush(parent); err != nil {
				return nil, err
			}
		case !errors.Is(err, fs.ErrExist):
			return nil, failed("make the folder "+quote(name), err)
		}
	}
	return nil, handler.Fail(handler.Remote, fmt.Errorf("local: the folder %s comes and goes", quote(name)))
}

// chmod gives a new folder its mode whatever the umask says, through what was opened, not by name.
func chmod(parent *os.Root, name string, mode fs.FileMode) error {
	f, err := parent.Open(name)
	if err != nil {
		return nil // the next step finds out
	}
	defer f.Close()
	before, err := parent.Lstat(name)
	opened, openedErr := f.Stat()
	if err != nil || openedErr != nil || !os.SameFile(before, opened) {
		return nil // as above
	}
	if err := f.Chmod(mode); err != nil {
		return failed("set the mode of the folder "+quote(name), err)
	}
	return nil
}

func same(parent, opened *os.Root, name string) error {
	is, err := opened.Stat(".")
	if err != nil {
		return failed("look at the folder "+quote(name), err)
	}
	named, err := parent.Lstat(name)
	if err != nil {
		return failed("look at the folder "+quote(name), err)
	}
	if !named.IsDir() || !os.SameFile(is, named) {
		return linked(name)
	}
	return nil
}

func linked(name string) error {
	return handler.Fail(handler.Configuration, fmt.Errorf("local: %s %w", quote(name), errLink))
}

// flush makes the entries of a folder durable.
func flush(folder *os.Root) error {
	f, err := folder.Open(".")
	if err != nil {
		return failed("open a folder to flush it", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return failed("flush a folder", err)
	}
	return nil
}

func quote(name string) string { return fmt.Sprintf("%q", name) }

// failed classifies an error of the file system.
func failed(what string, err error) error {
	var hint string
	e := handler.Classify(err)
	switch {
	case e.Category == handler.Capacity:
		hint = "; the disk or its quota is full: make room, the item waits"
	case errors.Is(err, fs.ErrPermission):
		e.Category = handler.Authentication
		hint = "; the service's user needs to read, write and search the folder"
	case errors.Is(err, errReadOnly):
		e.Category, e.Verdict = handler.Internal, handler.Retry
		hint = "; the file system is mounted read-only"
	case e.Category != handler.Timeout:
		e.Category = handler.Remote // of the file system: there is no network that could have failed
	}
	e.Err = fmt.Errorf("local: cannot %s: %w%s", what, err, hint)
	return e
}
