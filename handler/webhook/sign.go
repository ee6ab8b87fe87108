package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
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

	"github.com/deliverykit/delivery/handler"
)

// The headers of Standard Webhooks, as net/http writes them.
const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"
)

const (
	signatureV1  = string(SignatureV1) + ","
	signatureV1a = string(SignatureV1a) + ","
)

// maxWhole is the size up to which a body can be signed with Ed25519, which takes the message as a
// whole.
const maxWhole = 10 << 20

// Sign returns the three headers of Standard Webhooks for a message with that id and body, signed
// with each of the secrets ("whsec_...", or the private key "whsk_..."): for tests of a receiver,
// and for senders of one's own. An error is that of a faulty secret, id or none at all.
func Sign(secrets []string, id string, at time.Time, body []byte) (http.Header, error) {
	keys, err := signingKeys(secrets)
	if err != nil {
		return nil, err
	}
	if id == "" || !validValue(id) {
		return nil, errors.New("webhook: the message id is empty or has a control character")
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	s := newSigner(keys, id, timestamp)
	if _, err := s.Write(body); err != nil {
		return nil, err
	}
	return http.Header{
		headerID:        {id},
		headerTimestamp: {timestamp},
		headerSignature: {s.signature()},
	}, nil
}

// signer signs "id.timestamp.body" with each key, the body as it is written.
type signer struct {
	io.Writer
	keys  []key
	macs  []hash.Hash // of the shared keys
	whole *whole      // for the private ones; nil without
}

func newSigner(keys []key, id, timestamp string) *signer {
	s := &signer{keys: keys}
	start := id + "." + timestamp + "."
	var writers []io.Writer
	for _, k := range keys {
		if k.shared == nil {
			if s.whole == nil {
				s.whole = &whole{left: maxWhole}
				_, _ = s.whole.Buffer.WriteString(start)
				writers = append(writers, s.whole)
			}
			continue
		}
		mac := hmac.New(sha256.New, k.shared)
		_, _ = io.WriteString(mac, start)
		s.macs = append(s.macs, mac)
		writers = append(writers, mac)
	}
	s.Writer = io.MultiWriter(writers...)
	return s
}

// whole is a message in memory, within bounds.
type whole struct {
	bytes.Buffer
	left int
}

func (w *whole) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, tooLarge()
	}
	return w.Buffer.Write(b)
}

func tooLarge() error {
	return handler.Fail(
		handler.Validation,
		fmt.Errorf(
			"webhook: payloads of more than %d MiB cannot be signed with v1a, which takes them as a whole; sign "+
				"with v1 (whsec_...), or deliver a link",
			maxWhole>>20,
		),
	)
}

func (s *signer) signature() string {
	parts := make([]string, 0, len(s.keys))
	macs := s.macs
	for _, k := range s.keys {
		if k.private != nil {
			parts = append(
				parts, signatureV1a+base64.StdEncoding.EncodeToString(ed25519.Sign(k.private, s.whole.Bytes())),
			)
			continue
		}
		parts = append(parts, signatureV1+base64.StdEncoding.EncodeToString(macs[0].Sum(nil)))
		macs = macs[1:]
	}
	s.whole = nil
	return strings.Join(parts, " ")
}
