// Package payload holds what is delivered: a Payload as the caller gives it, and its Content as a
// handler reads it. It knows no sibling. Small payloads live in the delivery's row; larger ones are
// spooled in chunks and read as a stream.
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

// ErrTooLarge is returned for content above a limit: of the service when it is accepted, of ReadAll
// when it is read.
var ErrTooLarge = errors.New("payload: too large")

// StagedSource is the reserved source name of the payloads that Org.Stage returns.
const StagedSource = "staged"

// Payload is what a request delivers. Make one with JSON, Bytes, Reader, Writer, File or Ref; the
// zero Payload is none. A Payload of a Reader can be used once, every other as often as needed.
type Payload struct {
	name, contentType string
	data              []byte
	inMemory          bool
	write             func(w io.Writer) error
	source, ref       string
	err               error
}

// JSON encodes v at once; what cannot be encoded is reported by the call that uses the payload.
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

// Bytes delivers b, which must not be changed until the call that uses it has returned. The content
// type follows the ending of name; without one it is application/octet-stream.
func Bytes(name string, b []byte) Payload {
	return Payload{name: name, data: b, inMemory: true}
}

// Reader delivers what r gives until io.EOF. It is read once, by the call that uses it, and not
// closed.
func Reader(name string, r io.Reader) Payload {
	if r == nil {
		return Payload{name: name, err: errors.New("payload: the reader is nil")}
	}
	return Payload{name: name, write: func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	}}
}

// Writer delivers what write writes: for exports that are generated, without a pipe or a goroutine.
func Writer(name string, write func(w io.Writer) error) Payload {
	if write == nil {
		return Payload{name: name, err: errors.New("payload: the write function is nil")}
	}
	return Payload{name: name, write: write}
}

// File delivers the content that the file has when the call that uses it reads it, under its base
// name.
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

// Ref delivers content that stays where it is: the Source registered under that name opens ref at
// each attempt.
func Ref(source, ref string) Payload {
	p := Payload{source: source, ref: ref}
	if source == "" || ref == "" {
		p.err = errors.New("payload: a Ref needs the name of a source and a reference")
	}
	return p
}

// As returns p under another name, and with another content type unless that is "".
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

// Err returns what is wrong with p: its encoding failed, or an argument of its constructor was
// missing or malformed.
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

// Name is the file name, "" where none was given.
func (p Payload) Name() string { return p.name }

// ContentType is the media type: as given, else by the ending of the name, else
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

// Bytes returns the content where it is in memory already: that of JSON and Bytes.
func (p Payload) Bytes() ([]byte, bool) { return p.data, p.inMemory }

// Ref returns what Ref was given.
func (p Payload) Ref() (source, ref string, ok bool) { return p.source, p.ref, p.source != "" }

// WriteTo writes the content to w, once only for a Reader. A Ref has none to write.
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
	return 0, errors.New("payload: has no content of its own to write")
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
