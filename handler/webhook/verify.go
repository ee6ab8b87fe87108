package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The errors of Verify and VerifyRequest. All but ErrSecret are the fault of the request.
var (
	ErrSecret    = errors.New("webhook: faulty signing secret")
	ErrHeader    = errors.New("webhook: missing or malformed header")
	ErrTooOld    = errors.New("webhook: the timestamp is too old")
	ErrTooNew    = errors.New("webhook: the timestamp is in the future")
	ErrSignature = errors.New("webhook: no signature matches")
	ErrBodySize  = errors.New("webhook: the body is too large")
)

const (
	defaultTolerance = 5 * time.Minute
	defaultMaxBody   = 10 << 20
	maxSignatures    = 64 // in a header: more are refused before any of them costs time
)

// VerifyOption adjusts Verify and VerifyRequest.
type VerifyOption func(*verification)

type verification struct {
	tolerance time.Duration
	now       func() time.Time
	maxBody   int64
}

// Tolerance is how far the timestamp may be from the receiver's clock, either way: 5 minutes. It
// bounds for how long a request that someone recorded can be sent again; remember the webhook-id
// for that long to notice.
func Tolerance(d time.Duration) VerifyOption { return func(v *verification) { v.tolerance = d } }

// Clock replaces time.Now.
func Clock(now func() time.Time) VerifyOption { return func(v *verification) { v.now = now } }

// MaxBody is how many bytes VerifyRequest reads: 10 MiB.
func MaxBody(n int64) VerifyOption { return func(v *verification) { v.maxBody = n } }

// Verify reports whether a request was signed with one of the secrets, is unmodified, and is
// recent. Several secrets are accepted while one replaces another. A secret is that of an HMAC
// ("whsec_...") or a public key ("whpk_..."), and verifies signatures of its own version, v1 or
// v1a; all others are passed over. body is what was received, byte for byte, not decoded and
// encoded again. Signatures are compared in constant time.
func Verify(secrets []string, header http.Header, body []byte, opts ...VerifyOption) error {
	v := verification{tolerance: defaultTolerance, now: time.Now}
	for _, o := range opts {
		o(&v)
	}
	keys, err := verifyingKeys(secrets)
	if err != nil {
		return err
	}
	id, err := one(header, headerID)
	if err != nil {
		return err
	}
	timestamp, err := one(header, headerTimestamp)
	if err != nil {
		return err
	}
	signatures, err := parseSignatures(header, keys)
	if err != nil {
		return err
	}
	at, err := parseTimestamp(timestamp)
	if err != nil {
		return err
	}
	switch age := v.now().Sub(at); {
	case age > v.tolerance:
		return fmt.Errorf("%w: by more than %s", ErrTooOld, v.tolerance)
	case age < -v.tolerance:
		return fmt.Errorf("%w: by more than %s", ErrTooNew, v.tolerance)
	}
	if !matches(keys, signatures, id+"."+timestamp+".", body) {
		return ErrSignature
	}
	return nil
}

// matches verifies each signature with each key of its version.
func matches(keys []key, signatures map[Signature][][]byte, start string, body []byte) bool {
	var message []byte
	matched := false
	for _, k := range keys {
		if k.shared == nil {
			if message == nil {
				message = append([]byte(start), body...)
			}
			for _, got := range signatures[SignatureV1a] {
				matched = ed25519.Verify(k.public, message, got) || matched
			}
			continue
		}
		mac := hmac.New(sha256.New, k.shared)
		_, _ = io.WriteString(mac, start)
		_, _ = mac.Write(body)
		want := mac.Sum(nil)
		for _, got := range signatures[SignatureV1] {
			matched = hmac.Equal(got, want) || matched
		}
	}
	return matched
}

// VerifyRequest reads the body of r and verifies it. It returns the body, and leaves r.Body to be
// read once more.
func VerifyRequest(r *http.Request, secrets []string, opts ...VerifyOption) ([]byte, error) {
	v := verification{maxBody: defaultMaxBody}
	for _, o := range opts {
		o(&v)
	}
	if r.ContentLength > v.maxBody {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrBodySize, r.ContentLength, v.maxBody)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, v.maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("webhook: the body cannot be read: %w", err)
	}
	if int64(len(body)) > v.maxBody {
		return nil, fmt.Errorf("%w: the limit is %d", ErrBodySize, v.maxBody)
	}
	if err := Verify(secrets, r.Header, body, opts...); err != nil {
		return nil, err
	}
	_ = r.Body.Close()
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, nil
}

// one refuses what a proxy and a receiver could read in two ways.
func one(header http.Header, name string) (string, error) {
	values := header.Values(name)
	if len(values) != 1 || values[0] == "" {
		return "", fmt.Errorf("%w: %s is there %d times", ErrHeader, strings.ToLower(name), len(values))
	}
	return values[0], nil
}

func parseTimestamp(s string) (time.Time, error) {
	seconds, err := strconv.ParseUint(s, 10, 64)
	if err != nil || len(s) > 11 { // digits only, up to the year 5138
		return time.Time{}, fmt.Errorf("%w: webhook-timestamp is not in Unix seconds", ErrHeader)
	}
	return time.Unix(int64(seconds), 0), nil // 11 digits at most
}

// parseSignatures returns the signatures of the header, "v1,<base64> v1a,<base64>", that are of the
// keys' versions.
func parseSignatures(header http.Header, keys []key) (map[Signature][][]byte, error) {
	fields := strings.Fields(strings.Join(header.Values(headerSignature), " "))
	if len(fields) == 0 {
		return nil, fmt.Errorf("%w: webhook-signature is missing", ErrHeader)
	}
	if len(fields) > maxSignatures {
		return nil, fmt.Errorf("%w: webhook-signature has more than %d signatures", ErrHeader, maxSignatures)
	}
	wanted := map[Signature]bool{}
	for _, k := range keys {
		wanted[k.version()] = true
	}
	signatures := map[Signature][][]byte{}
	for _, f := range fields {
		version, encoded, _ := strings.Cut(f, ",")
		if !wanted[Signature(version)] {
			continue
		}
		signature, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, fmt.Errorf("%w: webhook-signature is not in base64", ErrHeader)
		}
		signatures[Signature(version)] = append(signatures[Signature(version)], signature)
	}
	if len(signatures) == 0 {
		return nil, fmt.Errorf("%w: webhook-signature has none of the version that the secrets verify", ErrHeader)
	}
	return signatures, nil
}
