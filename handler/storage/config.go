package storage

import (
	"cmp"
	"errors"
	"mime"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/deliverykit/delivery/destination"
)

// Naming is the part of a config that names objects. Drivers embed it.
type Naming struct {
	// Name is the template of object names, see Template. Default: DefaultName.
	Name string `json:"name,omitempty"`
	// IfExists says what happens when an object with that name and different content exists.
	// Default: Fail.
	IfExists IfExists `json:"if_exists,omitempty"`
}

// IfExists says what is done where there is an object of that name with another content.
type IfExists string

// What is done. The same content is never written again.
const (
	Fail    IfExists = "fail"    // the item fails with handler.Conflict
	Replace IfExists = "replace" // the object is replaced: the last to come stays
)

// Validate reports every faulty field.
func (n Naming) Validate() error {
	var errs []error
	if _, err := n.Template(); err != nil {
		errs = append(errs, destination.Invalid("name", "%v", err))
	}
	switch n.IfExists {
	case "", Fail, Replace:
	default:
		errs = append(errs, destination.Invalid("if_exists", `is not "fail" or "replace"`))
	}
	return errors.Join(errs...)
}

// Template parses Name.
func (n Naming) Template() (*Template, error) { return ParseTemplate(cmp.Or(n.Name, DefaultName)) }

// Expiry is the part of a config that says how long objects stay. Drivers embed it.
type Expiry struct {
	// DeleteAfterDays is the number of days after which Maintain deletes what was delivered, up to
	// 36500. Default: never. It deletes only what a delivery wrote while this was set, and only if
	// nobody has replaced it since. Objects stay when the destination is deleted.
	DeleteAfterDays int `json:"delete_after_days,omitempty"`
}

// Validate reports the faulty field; protected is for how many days the config forbids to delete
// anything.
func (e Expiry) Validate(protected int) error {
	if e.DeleteAfterDays < 0 || e.DeleteAfterDays > 36500 {
		return destination.Invalid("delete_after_days", "is not between 1 and 36500")
	}
	if e.DeleteAfterDays > 0 && e.DeleteAfterDays < protected {
		return destination.Invalid(
			"delete_after_days", "is less than the %d days for which objects are protected", protected,
		)
	}
	return nil
}

// Retention is DeleteAfterDays, 0 for ever.
func (e Expiry) Retention() time.Duration { return time.Duration(e.DeleteAfterDays) * 24 * time.Hour }

// Attributes is the part of a config that says what is stored along with an object. Drivers embed
// it.
type Attributes struct {
	// ContentType overrides the payload's content type.
	ContentType string `json:"content_type,omitempty"`
	// Metadata is kept with each object: up to 20 names of letters, digits and hyphens, with values
	// of printable ASCII, up to 1500 bytes in total. Names that begin with "delivery-" are
	// reserved.
	Metadata map[string]string `json:"metadata,omitempty"`
	// Tags are put on each object: up to 10. Keys have up to 128 characters and values up to 256:
	// letters, digits, spaces and + - = . _ : / @.
	Tags map[string]string `json:"tags,omitempty"`
}

// The metadata that drivers add.
const (
	MetadataItem   = "delivery-item"   // the item's id
	MetadataSHA256 = "delivery-sha256" // of the content, in hex, where it was known before it was sent
)

const (
	maxMetadata      = 20
	maxMetadataBytes = 1500 // S3 takes 2 KB; ours are below 300
	maxTags          = 10
)

var (
	metadataName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,126}[A-Za-z0-9])?$`)
	tagText      = regexp.MustCompile(`^[\p{L}\p{N} +\-=._:/@]*$`)
)

// Validate reports every faulty field.
func (a Attributes) Validate() error {
	var errs []error
	invalid := func(path, format string, args ...any) {
		errs = append(errs, destination.Invalid(path, format, args...))
	}
	if a.ContentType != "" {
		media, _, err := mime.ParseMediaType(a.ContentType)
		if err != nil || !strings.Contains(media, "/") || !printable(a.ContentType) {
			invalid("content_type", `is not a media type; expected for example "text/csv"`)
		}
	}
	if len(a.Metadata) > maxMetadata {
		invalid("metadata", "has more than %d entries", maxMetadata)
	}
	total := 0
	for name, value := range a.Metadata {
		total += len(name) + len(value)
		switch path := "metadata." + name; {
		case !metadataName.MatchString(name):
			invalid(path, "the name is not of letters, digits and hyphens")
		case strings.HasPrefix(strings.ToLower(name), "delivery-"):
			invalid(path, `names that begin with "delivery-" are reserved`)
		case !printable(value) || value == "" || strings.TrimSpace(value) != value:
			invalid(path, "the value is empty, not printable ASCII, or has spaces around it")
		}
	}
	if total > maxMetadataBytes {
		invalid("metadata", "has %d bytes together, more than %d", total, maxMetadataBytes)
	}
	if len(a.Tags) > maxTags {
		invalid("tags", "has more than %d entries", maxTags)
	}
	for key, value := range a.Tags {
		switch path := "tags." + key; {
		case key == "" || utf8.RuneCountInString(key) > 128 || !tagText.MatchString(key) ||
			strings.HasPrefix(key, "aws:"):
			invalid(
				path,
				`the key is empty, longer than 128 characters, begins with "aws:", or has an unsuitable character`,
			)
		case utf8.RuneCountInString(value) > 256 || !tagText.MatchString(value):
			invalid(path, "the value is longer than 256 characters or has one that tags do not take")
		}
	}
	return errors.Join(errs...)
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// AllMetadata returns Metadata plus the library's own entries (item id, SHA-256), by which a later
// attempt recognises the object. Names are in lower case.
func (u *Upload) AllMetadata() map[string]string {
	all := make(map[string]string, len(u.Metadata)+2)
	for name, value := range u.Metadata {
		all[strings.ToLower(name)] = value
	}
	if u.Item != "" && printable(u.Item) {
		all[MetadataItem] = u.Item
	}
	if u.SHA256 != "" {
		all[MetadataSHA256] = u.SHA256
	}
	return all
}
