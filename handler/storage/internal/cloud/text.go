package cloud

import (
	"errors"
	"strings"

	"github.com/deliverykit/delivery/destination"
)

// Redactor takes a config's secrets out of foreign text.
type Redactor struct{ replace *strings.Replacer }

// NewRedactor returns a Redactor for the secrets that are set.
func NewRedactor(secrets ...destination.Secret) Redactor {
	var pairs []string
	for _, s := range secrets {
		if s.IsSet() {
			pairs = append(pairs, s.Reveal(), destination.Redacted)
		}
	}
	return Redactor{strings.NewReplacer(pairs...)}
}

const maxLine = 500

// Line is foreign text, on one line and bounded.
func (r Redactor) Line(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(r.replace.Replace(s), "?")), " ")
	s = strings.ReplaceAll(s, "\x00", "?")
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "..."
	}
	return s
}

// Wrap keeps err, unless its text has a secret in it.
func (r Redactor) Wrap(err error) error {
	if text := err.Error(); r.replace.Replace(text) != text {
		return errors.New(r.Line(text))
	}
	return err
}
