package local

import "os"

// RenameNoReplace is what is used where there are no hard links.
func RenameNoReplace(folder *os.Root, from, to string) error {
	return renameNoReplace(folder, from, to)
}

// Failed classifies an error of the file system.
func Failed(err error) error { return failed("write", err) }
