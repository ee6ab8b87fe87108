package storage

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/deliverykit/delivery/handler"
)

// The limits of names, in bytes. They are those of S3, Google and Azure for a name, and of file
// systems for a segment.
const (
	MaxName    = 1024
	MaxSegment = 255
)

// maxValue bounds what one field gives to a name.
const maxValue = 200

// DefaultName is the template where a config gives none. It is unique per item.
const DefaultName = "{year}/{month}/{day}/{item}-{file}"

// reserved begins the names of what drivers write temporarily.
const reserved = ".delivery-"

// Template makes an object's name of an item: text with fields in braces, such as
// "exports/{topic}/{item}{ext}".
//
//	{organization}                       the organization
//	{year} {month} {day} {hour} {date}   of the time when the delivery was accepted, in UTC; {date} is 2026-11-30
//	{delivery} {item}                    their ids; the item's begins with the delivery's
//	{topic}                              of the request
//	{file} {stem} {ext}                  the payload's file name, it without its ending, and the ending with its dot:
//	                                     "payload" and an ending by content type where the payload has no name
//	{metadata.KEY}                       of the request's metadata
//
// What a field gives is made safe: slashes, control characters and what file systems reserve become
// "_", and so does an empty value, but for {ext}; a long value or segment is cut and gets a hash of
// the whole. So a field never adds a segment, and never makes one that is "." or ".." or begins
// with a dot. The same item has the same name in every attempt.
type Template struct {
	segments [][]part
}

// part is literal text, or a field if that is not "".
type part struct{ text, field string }

var fieldName = regexp.MustCompile(
	`^(organization|year|month|day|hour|date|delivery|item|topic|file|stem|ext|metadata\.[A-Za-z0-9_.-]{1,128})$`,
)

// ParseTemplate parses and checks a template.
func ParseTemplate(text string) (*Template, error) {
	t := &Template{}
	if text == "" || len(text) > MaxName || !utf8.ValidString(text) {
		return nil, fmt.Errorf("is empty, longer than %d bytes or not UTF-8", MaxName)
	}
	for segment := range strings.SplitSeq(text, "/") {
		parts, err := parseSegment(segment)
		if err != nil {
			return nil, err
		}
		t.segments = append(t.segments, parts)
	}
	return t, nil
}

func parseSegment(segment string) ([]part, error) {
	switch {
	case segment == "":
		return nil, errors.New("has an empty segment: it must not begin or end with a slash, or have two in a row")
	case segment == ".", segment == "..":
		return nil, errors.New(`has a segment "." or ".."`)
	case strings.HasPrefix(segment, reserved):
		return nil, fmt.Errorf("has a segment that begins with %q, which is reserved", reserved)
	}
	var parts []part
	for rest := segment; rest != ""; {
		text, after, found := strings.Cut(rest, "{")
		if strings.Contains(text, "}") {
			return nil, errors.New("has a closing brace without an opening one")
		}
		if strings.ContainsFunc(text, func(r rune) bool { return unsafeRune(r) }) {
			return nil, errors.New(`has a control character or one of \ : * ? " < > |`)
		}
		if text != "" {
			parts = append(parts, part{text: norm.NFC.String(text)})
		}
		if !found {
			break
		}
		field, tail, closed := strings.Cut(after, "}")
		if !closed {
			return nil, errors.New("has an opening brace without a closing one")
		}
		if !fieldName.MatchString(field) {
			return nil, errors.New(
				"has an unknown field; there are organization, year, month, day, hour, date, delivery, item, " +
					"topic, file, stem, ext and metadata.KEY",
			)
		}
		parts = append(parts, part{field: field})
		rest = tail
	}
	return parts, nil
}

// Name renders the name of a request's object. It fails, as handler.Validation, where that is
// longer than MaxName.
func (t *Template) Name(req *handler.Request) (string, error) {
	segments := make([]string, len(t.segments))
	for i, parts := range t.segments {
		var b strings.Builder
		for _, p := range parts {
			if p.field == "" {
				b.WriteString(p.text)
				continue
			}
			b.WriteString(safe(value(req, p.field), p.field == "ext"))
		}
		s := b.String()
		if s == "" {
			s = "_"
		}
		if parts[0].field != "" && strings.HasPrefix(s, ".") || strings.HasPrefix(s, reserved) || s == "." ||
			s == ".." {
			s = "_" + s
		}
		segments[i] = shorten(norm.NFC.String(s), MaxSegment)
	}
	name := strings.Join(segments, "/")
	if err := CheckName(name); err != nil {
		return "", handler.Fail(
			handler.Validation, fmt.Errorf("storage: the object's name %w; shorten the destination's template", err),
		)
	}
	return name, nil
}

// CheckName refuses what is no name of an object: every name is checked by it before it is used.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case len(name) > MaxName:
		return fmt.Errorf("has %d bytes, more than %d", len(name), MaxName)
	case !utf8.ValidString(name):
		return errors.New("is not UTF-8")
	case strings.ContainsFunc(name, unicode.IsControl):
		return errors.New("has a control character")
	case strings.Contains(name, `\`):
		return errors.New("has a backslash")
	}
	for segment := range strings.SplitSeq(name, "/") {
		switch {
		case segment == "", segment == ".", segment == "..":
			return errors.New(`has a segment that is empty, "." or ".."`)
		case len(segment) > MaxSegment:
			return fmt.Errorf("has a segment of %d bytes, more than %d", len(segment), MaxSegment)
		}
	}
	return nil
}

func value(req *handler.Request, field string) string {
	at := req.CreatedAt.UTC()
	switch field {
	case "organization":
		return req.Organization
	case "year":
		return at.Format("2006")
	case "month":
		return at.Format("01")
	case "day":
		return at.Format("02")
	case "hour":
		return at.Format("15")
	case "date":
		return at.Format("2006-01-02")
	case "delivery":
		return req.DeliveryID
	case "item":
		return req.ItemID
	case "topic":
		return req.Topic
	case "file":
		return fileName(req)
	case "stem":
		name := fileName(req)
		return strings.TrimSuffix(name, extension(name))
	case "ext":
		return extension(fileName(req))
	}
	key, _ := strings.CutPrefix(field, "metadata.")
	return req.Metadata[key]
}

// endings is fixed, because what the system's MIME table gives differs between machines, and a name
// must not.
var endings = map[string]string{
	"application/json": ".json", "application/x-ndjson": ".ndjson", "application/xml": ".xml", "text/xml": ".xml",
	"text/csv": ".csv", "text/plain": ".txt", "text/html": ".html",
	"application/pdf": ".pdf", "application/zip": ".zip",
	"application/gzip": ".gz", "application/vnd.apache.parquet": ".parquet",
}

func fileName(req *handler.Request) string {
	info := req.Payload.Info()
	if name := strings.TrimSpace(info.Name); name != "" {
		return name
	}
	media, _, _ := mime.ParseMediaType(info.ContentType) // "" has no ending
	return "payload" + endings[media]
}

// extension is the ending of a file name with its dot; ".profile" has none.
func extension(name string) string {
	ext := path.Ext(name)
	if len(ext) < 2 || len(ext) > 32 || ext == name {
		return ""
	}
	return ext
}

// unsafeRune tells what no field may give to a name: what separates, what cannot be seen or changes
// the direction of the text around it, and what file systems reserve.
func unsafeRune(r rune) bool {
	return strings.ContainsRune("/\\:*?\"<>|{}", r) || unicode.IsControl(r) || !unicode.IsPrint(r) && r != ' ' ||
		r == unicode.ReplacementChar
}

func safe(v string, mayBeEmpty bool) string {
	v = strings.Map(func(r rune) rune {
		if unsafeRune(r) {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(v, "_"))
	v = strings.TrimSpace(norm.NFC.String(v))
	if v == "" && !mayBeEmpty {
		return "_"
	}
	return shorten(v, maxValue)
}

// shorten cuts s to a number of bytes; a hash of the whole keeps apart what begins alike, and the
// ending stays.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	tail := "~" + hex.EncodeToString(sum[:6]) + extension(s)
	n := limit - len(tail)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + tail
}

// Unique reports whether the name has the item's or the delivery's id in it, so that no two
// deliveries share one.
func (t *Template) Unique() bool {
	return slices.ContainsFunc(t.segments, func(parts []part) bool {
		return slices.ContainsFunc(parts, func(p part) bool { return p.field == "item" || p.field == "delivery" })
	})
}

// Prefix is what all names begin with: the literal text before the first field.
func (t *Template) Prefix() string {
	var b strings.Builder
	for i, parts := range t.segments {
		if i > 0 {
			b.WriteByte('/')
		}
		for _, p := range parts {
			if p.field != "" {
				return b.String()
			}
			b.WriteString(p.text)
		}
	}
	return b.String()
}

var patterns = map[string]string{
	"year": `[0-9]{4}`, "month": `[0-9]{2}`, "day": `[0-9]{2}`, "hour": `[0-9]{2}`,
	"date":     `[0-9]{4}-[0-9]{2}-[0-9]{2}`,
	"delivery": `[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`,
	"item":     `[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:-[0-9]+)?`,
	"ext":      `(?:\.[^/]+)?`,
}

// Matcher returns a function that tells whether a name may come of this template.
func (t *Template) Matcher() func(name string) bool {
	segments := make([]string, len(t.segments))
	for i, parts := range t.segments {
		for _, p := range parts {
			switch pattern, fixed := patterns[p.field]; {
			case p.field == "":
				segments[i] += regexp.QuoteMeta(p.text)
			case fixed:
				segments[i] += pattern
			default:
				segments[i] += `[^/]+`
			}
		}
	}
	return regexp.MustCompile(`^` + strings.Join(segments, "/") + `$`).MatchString
}
