// Package local delivers payloads as files to a directory of the host's machine, or of a file
// system that is mounted there.
//
// The host says which directory: New("/srv/exports"). Each organization has a folder of its own in
// it, named for it, and a destination's Config a folder in that; so a tenant reaches no file of
// another, nor anything outside. A symbolic link below the host's directory is never followed, not
// even when one is put in place of a folder while a file is written.
//
// A file is written under a temporary name in its own folder, ".delivery-" and more, and flushed to
// the disk. Then it gets its name, by a hard link or, where the file system has none, by a rename
// that replaces nothing (Linux), and its folder is flushed. So a file is there whole or not at all,
// also after a power failure, and one that is there already is not replaced unless the Config says
// so. What a killed process leaves under temporary names is removed a day later by the next
// delivery to the same folder, or by Maintain.
//
// A full disk and a used-up quota are handler.Capacity: the item waits until there is room.
package local
