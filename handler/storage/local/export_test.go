package local

import "os"

// RenameNoReplace is what is used where there are no hard links.
func RenameNoReplace(folder *os.Root, from, to string) error {
	return renameNoReplace(folder, from, to)
}
