// Package payload holds what is delivered: a [Payload] as the caller gives it, and its [Content] as
// a handler reads it. Small payloads are kept in the delivery's row. Larger ones are spooled in
// chunks and read as a stream. The package imports no sibling.
package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"os"
	"path/filepath"
	"strings"
)

// ErrTooLarge is returned for content above a limit: the service's when content is accepted, that
// of [Content.ReadAll] when it is read.
var ErrTooLarge = errors.New("payload: too large")

// StagedSource is the reserved source name of the payloads that Org.Stage returns.
const StagedSource = "staged"

// Payload is what a request delivers. Make one with [JSON], [Bytes], [Reader], [Writer], [File] or
// [Ref]; the zero Payload is none. A Payload of a Reader can be used once, others as often as
// needed.
type Payload struct {
	name, contentType string
	data              []byte
	inMemory          bool
	write             func(w io.Writer) error
	source, ref       string
	err               error
}

// JSON encodes v at once. If that fails, the call that uses the payload reports the error.
func JSON(v any) Payload {
	data, err := encode(v)
	if err != nil {
		err = fmt.Errorf("payload: a %T cannot be encoded as JSON: %w", v, err)
	}
	return Payload{contentType: "application/json", data: data, inMemory: true, err: err}
}

// encode turns a panic of a MarshalJSON into an error: a caller's value must not take its process
// down.
func encode(v any) (data []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("encoding panicked: %v", r)
		}
	}()
	return json.Marshal(v)
}

// Bytes delivers b, which must not be changed until the call that uses it has returned. The ending
// of name determines the content type. Default: application/octet-stream.
func Bytes(name string, b []byte) Payload {
	return Payload{name: name, data: b, inMemory: true}
}

// Reader delivers everything read from r until io.EOF. The call that uses the payload reads r once,
// and does not close it.
func Reader(name string, r io.Reader) Payload {
	if r == nil {
		return Payload{name: name, err: errors.New("payload: the reader is nil")}
	}
	return Payload{name: name, write: func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	}}
}

// Writer delivers what write writes. Use it for generated exports: the caller needs no pipe and no
// goroutine.
func Writer(name string, write func(w io.Writer) error) Payload {
	if write == nil {
		return Payload{name: name, err: errors.New("payload: the write function is nil")}
	}
	return Payload{name: name, write: write}
}

// File delivers a file under its base name. The call that uses the payload reads the file, with the
// content that it has then.
func File(path string) Payload {
	return Payload{name: filepath.Base(path), write: func(w io.Writer) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}}
}

// Ref delivers content that stays where it is. At each attempt, the [Source] registered under the
// name source opens ref.
func Ref(source, ref string) Payload {
	p := Payload{source: source, ref: ref}
	if source == "" || ref == "" {
		p.err = errors.New("payload: a Ref needs the name of a source and a reference")
	}
	return p
}

// As returns p with another name, and with another content type unless contentType is "".
func (p Payload) As(name, contentType string) Payload {
	p.name = name
	if contentType != "" {
		p.contentType = contentType
	}
	return p
}

// IsZero reports whether p is the zero Payload.
func (p Payload) IsZero() bool {
	return !p.inMemory && p.write == nil && p.source == "" && p.err == nil
}

// Err returns the fault of p, nil if it has none: its encoding failed, or an argument of its
// constructor was missing or malformed.
func (p Payload) Err() error {
	if p.err != nil {
		return p.err
	}
	if p.contentType != "" {
		if _, _, err := mime.ParseMediaType(p.contentType); err != nil {
			return fmt.Errorf("payload: content type %q: %w", p.contentType, err)
		}
	}
	if strings.ContainsAny(p.name, "/\\\x00\r\n") {
		return fmt.Errorf("payload: the name %q must be a plain file name, without folders", p.name)
	}
	return nil
}

// Name is the file name, "" if none was given.
func (p Payload) Name() string { return p.name }

// ContentType is the media type: as given, or otherwise by the ending of the name. Default:
// application/octet-stream.
func (p Payload) ContentType() string {
	if p.contentType != "" {
		return p.contentType
	}
	if t := mime.TypeByExtension(filepath.Ext(p.name)); t != "" {
		return t
	}
	return "application/octet-stream"
}

// Bytes returns the content of a payload made by [JSON] or [Bytes]. For others, ok is false.
func (p Payload) Bytes() (content []byte, ok bool) { return p.data, p.inMemory }

// Ref returns the arguments of [Ref]. For other payloads, ok is false.
func (p Payload) Ref() (source, ref string, ok bool) { return p.source, p.ref, p.source != "" }

// WriteTo writes the content to w. A payload of a [Reader] can be written once. A [Ref] has no
// content to write, which is an error.
func (p Payload) WriteTo(w io.Writer) (int64, error) {
	if err := p.Err(); err != nil {
		return 0, err
	}
	n := counter{w: w}
	switch {
	case p.inMemory:
		_, err := io.Copy(&n, bytes.NewReader(p.data))
		return n.n, err
	case p.write != nil:
		err := p.produce(&n)
		return n.n, err
	}
	return 0, errors.New("payload: there is no content to write")
}

func (p Payload) produce(w io.Writer) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("payload: the write function panicked: %v", r)
		}
	}()
	return p.write(w)
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
