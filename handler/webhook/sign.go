package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
)

// The headers of Standard Webhooks, as net/http writes them.
const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"
)

const (
	secretPrefix    = "whsec_"
	signatureV1     = "v1," // HMAC-SHA256
	minSecret       = 24    // bytes, as Standard Webhooks demands
	maxSecret       = 64
	minVariety      = 10 // different bytes: of 24 random ones, all but one in 10^11 have more
	maxSecrets      = 8
	generatedSecret = 32
)

// GenerateSecret returns a new signing secret of 32 random bytes.
func GenerateSecret() destination.Secret {
	b := make([]byte, generatedSecret)
	_, _ = rand.Read(b) // never fails: it ends the process instead
	return destination.NewSecret(secretPrefix + base64.StdEncoding.EncodeToString(b))
}

// Sign returns the three headers of Standard Webhooks for a message with that id and body, signed with each of the
// secrets: for tests of a receiver, and for senders of one's own. An error is that of a faulty secret, id or none at all.
func Sign(secrets []string, id string, at time.Time, body []byte) (http.Header, error) {
	keys, err := decodeSecrets(secrets)
	if err != nil {
		return nil, err
	}
	if id == "" || !validValue(id) {
		return nil, errors.New("webhook: the message id is empty or has a control character")
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	s := newSigner(keys, id, timestamp)
	_, _ = s.Write(body)
	return http.Header{
		headerID:        {id},
		headerTimestamp: {timestamp},
		headerSignature: {s.signature()},
	}, nil
}

// signer computes HMAC-SHA256 over "id.timestamp.body" with each key, the body as it is written.
type signer struct {
	io.Writer
	macs []hash.Hash
}

func newSigner(keys [][]byte, id, timestamp string) *signer {
	s := &signer{}
	writers := make([]io.Writer, 0, len(keys))
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		_, _ = io.WriteString(mac, id+"."+timestamp+".")
		s.macs = append(s.macs, mac)
		writers = append(writers, mac)
	}
	s.Writer = io.MultiWriter(writers...)
	return s
}

func (s *signer) signature() string {
	parts := make([]string, len(s.macs))
	for i, mac := range s.macs {
		parts[i] = signatureV1 + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(parts, " ")
}

func decodeSecrets(secrets []string) ([][]byte, error) {
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrSecret)
	}
	keys := make([][]byte, len(secrets))
	for i, s := range secrets {
		key, problem := decodeSecret(s)
		if problem != "" {
			return nil, fmt.Errorf("%w: secret %d of %d %s", ErrSecret, i+1, len(secrets), problem)
		}
		keys[i] = key
	}
	return keys, nil
}

// decodeSecret returns the key that a secret stands for, or what is wrong with it, without quoting it. The prefix may be
// missing, as in the libraries of Standard Webhooks.
func decodeSecret(secret string) (key []byte, problem string) {
	key, err := base64.StdEncoding.Strict().DecodeString(strings.TrimPrefix(secret, secretPrefix))
	switch {
	case err != nil || strings.ContainsAny(secret, "\r\n"):
		return nil, `is not "whsec_" and standard base64, as "openssl rand -base64 32" prints it`
	case len(key) < minSecret || len(key) > maxSecret:
		return nil, fmt.Sprintf("has %d bytes, not %d to %d", len(key), minSecret, maxSecret)
	}
	return key, ""
}

func (c Config) validateSecrets() error {
	if c.Unsigned && len(c.SigningSecrets) > 0 {
		return &destination.FieldError{Path: "signing_secrets", Code: "conflict", Message: "are given although unsigned is set"}
	}
	if len(c.SigningSecrets) > maxSecrets {
		return destination.Invalid("signing_secrets", "are %d, more than %d", len(c.SigningSecrets), maxSecrets)
	}
	var errs []error
	seen := map[string]bool{}
	for i, s := range c.SigningSecrets {
		path := fmt.Sprintf("signing_secrets[%d]", i)
		key, problem := decodeSecret(s.Reveal())
		switch {
		case !s.IsSet():
			errs = append(errs, destination.Require(path, ""))
			continue
		case s.IsRedacted():
			problem = fmt.Sprintf("is the placeholder %q; give the value", destination.Redacted)
		case problem == "" && variety(key) < minVariety:
			problem = "is too easy to guess: take random bytes"
		case problem == "" && seen[string(key)]:
			problem = "is there twice"
		}
		if problem != "" {
			errs = append(errs, destination.Invalid(path, "%s", problem))
		}
		seen[string(key)] = true
	}
	return errors.Join(errs...)
}

func variety(key []byte) int {
	var seen [256]bool
	n := 0
	for _, b := range key {
		if !seen[b] {
			seen[b] = true
			n++
		}
	}
	return n
}

func (c Config) keys() ([][]byte, error) {
	if c.Unsigned {
		return nil, nil
	}
	secrets := make([]string, len(c.SigningSecrets))
	for i, s := range c.SigningSecrets {
		secrets[i] = s.Reveal()
	}
	return decodeSecrets(secrets)
}
