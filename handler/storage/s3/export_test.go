package s3

import "io"

// NewBody returns the body of a request, and what seals it.
func NewBody(b []byte) (r io.ReadSeeker, seal func()) {
	made := newBody(b)
	return made, made.seal
}

// PartSize is what a Config gives to content of that size.
func PartSize(c Config, size int64) int64 { return c.partSize(size) }
