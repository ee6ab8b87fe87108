package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// Signature is a signature scheme of Standard Webhooks.
type Signature string

// The signature schemes.
const (
	SignatureV1  Signature = "v1"  // HMAC-SHA256, with a secret that both sides know
	SignatureV1a Signature = "v1a" // Ed25519: the receiver knows only the public key, and cannot sign
)

// The forms of secrets. All but the raw form are those of Standard Webhooks.
const (
	secretPrefix  = "whsec_" // and 24 to 64 bytes in standard base64; the prefix may be missing, as in the libraries
	privatePrefix = "whsk_"  // and an Ed25519 private key in standard base64: the seed, or the seed and the public key
	publicPrefix  = "whpk_"  // and its public key
	rawPrefix     = "raw:"   // and the 24 to 64 bytes of the key as they are
)

const (
	minSecret       = 24 // bytes, as Standard Webhooks demands
	maxSecret       = 64
	maxSecrets      = 8
	generatedSecret = 32
)

// samples are secrets published in documentation; they are rejected.
var samples = []string{
	"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",             // the libraries of Standard Webhooks and Svix
	"C2FVsBQIhrscChlQIMV+b5sSYspob7oD",             // the specification, and the API reference of Svix
	"plJ3nmyCDGBKInavdOK15jsl",                     // the guide of Svix to verifying by hand
	"5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH",             // its earlier edition
	"nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=", // the first private key of RFC 8032, section 7.1
}

// PreviousSecret is a signing secret that another has replaced.
type PreviousSecret struct {
	Secret destination.Secret `json:"secret"`
	Until  time.Time          `json:"until"` // signs until then
}

// GenerateSecret returns a new signing secret of 32 random bytes, for v1.
func GenerateSecret() destination.Secret {
	b := make([]byte, generatedSecret)
	_, _ = rand.Read(b) // never fails: it ends the process instead
	return destination.NewSecret(secretPrefix + base64.StdEncoding.EncodeToString(b))
}

// GenerateKey returns a new private key, for v1a. PublicKey gives what its receiver needs.
func GenerateKey() destination.Secret {
	_, private, _ := ed25519.GenerateKey(nil) // never fails: it ends the process instead
	return destination.NewSecret(privatePrefix + base64.StdEncoding.EncodeToString(private))
}

// PublicKey returns the public key ("whpk_...") that verifies what a private key ("whsk_...")
// signs.
func PublicKey(private destination.Secret) (string, error) {
	k, problem := decodeSecret(private.Reveal())
	if problem == "" && k.private == nil {
		problem = `is not a private key: it does not begin with "whsk_"`
	}
	if problem != "" {
		return "", fmt.Errorf("%w: it %s", ErrSecret, problem)
	}
	return k.verifier(), nil
}

// key is a decoded secret: one of its fields is set, and public together with private.
type key struct {
	shared  []byte
	private ed25519.PrivateKey
	public  ed25519.PublicKey
}

func (k key) equal(o key) bool {
	return bytes.Equal(k.shared, o.shared) && bytes.Equal(k.public, o.public)
}

func (k key) version() Signature {
	if k.shared != nil {
		return SignatureV1
	}
	return SignatureV1a
}

// verifier is the public key as text.
func (k key) verifier() string { return publicPrefix + base64.StdEncoding.EncodeToString(k.public) }

// entropy is what of a key is random.
func (k key) entropy() []byte {
	if k.private != nil {
		return k.private.Seed()
	}
	return k.shared
}

func signingKeys(secrets []string) ([]key, error) {
	return decodeSecrets(secrets, func(k key) string {
		if k.shared == nil && k.private == nil {
			return `is a public key, which cannot sign; give the private one, which begins with "whsk_"`
		}
		return ""
	})
}

func verifyingKeys(secrets []string) ([]key, error) {
	return decodeSecrets(secrets, func(k key) string {
		if k.private != nil {
			return `is a private key, which only the sender may know; verify with the public key ("whpk_...")`
		}
		return ""
	})
}

func decodeSecrets(secrets []string, unfit func(key) string) ([]key, error) {
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrSecret)
	}
	keys := make([]key, len(secrets))
	for i, s := range secrets {
		k, problem := decodeSecret(s)
		if problem == "" {
			problem = unfit(k)
		}
		if problem != "" {
			return nil, fmt.Errorf("%w: secret %d of %d %s", ErrSecret, i+1, len(secrets), problem)
		}
		keys[i] = k
	}
	return keys, nil
}

// decodeSecret returns the key that a secret stands for, or what is wrong with it, without quoting
// it.
func decodeSecret(secret string) (k key, problem string) {
	if raw, ok := strings.CutPrefix(secret, rawPrefix); ok {
		if !validValue(raw) {
			return key{}, "has a control character or white space at an end"
		}
		k.shared = []byte(raw)
		return k, k.wrongLength()
	}
	if encoded, ok := strings.CutPrefix(secret, privatePrefix); ok {
		b, err := decodeBase64(encoded)
		if err != nil || len(b) != ed25519.SeedSize && len(b) != ed25519.PrivateKeySize {
			return key{}, `is not "whsk_" and an Ed25519 private key of 32 or 64 bytes in standard base64`
		}
		k.private = ed25519.NewKeyFromSeed(b[:ed25519.SeedSize])
		if !bytes.HasPrefix(k.private, b) {
			return key{}, "has a public half that does not belong to its private half"
		}
		k.public = ed25519.PublicKey(k.private[ed25519.SeedSize:])
		return k, ""
	}
	if encoded, ok := strings.CutPrefix(secret, publicPrefix); ok {
		b, err := decodeBase64(encoded)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return key{}, `is not "whpk_" and an Ed25519 public key of 32 bytes in standard base64`
		}
		k.public = b
		return k, ""
	}
	b, err := decodeBase64(strings.TrimPrefix(secret, secretPrefix))
	if err != nil {
		return key{}, `is not "whsec_" and standard base64, as "openssl rand -base64 32" prints it; ` +
			`put "raw:" before a key that is not encoded`
	}
	k.shared = b
	return k, k.wrongLength()
}

func (k key) wrongLength() string {
	if n := len(k.shared); n < minSecret || n > maxSecret {
		return fmt.Sprintf("has %d bytes, not %d to %d", n, minSecret, maxSecret)
	}
	return ""
}

func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("has a line end") // which encoding/base64 skips
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

// weakness returns why a caller-supplied key must not sign, or "".
func (k key) weakness() string {
	random := k.entropy()
	for _, s := range samples {
		if b, err := base64.StdEncoding.DecodeString(s); err == nil && (bytes.Equal(b, random) || s == string(random)) {
			return "is the sample of a documentation, which everyone knows; take random bytes, or give none to " +
				"have one generated"
		}
	}
	if guessable(random) {
		return "is too easy to guess; take random bytes, or give none to have one generated"
	}
	return ""
}

// guessable recognises repetitions and sequences: fewer than 6 different bytes, fewer than 6
// different steps from one to the next, or pairs of neighbours of which no more than half are
// different. It tells nothing of words. Of 24 random hexadecimal digits, the weakest form that is
// long enough, one in 10^8 is refused; of random bytes none.
func guessable(b []byte) bool {
	values, steps, pairs := map[byte]bool{}, map[byte]bool{}, map[[2]byte]bool{}
	for i, c := range b {
		values[c] = true
		if i > 0 {
			steps[c-b[i-1]] = true
			pairs[[2]byte{b[i-1], c}] = true
		}
	}
	const few = 6
	return len(values) < few || len(steps) < few || len(pairs) <= len(b)/2
}

func (c Config) validateSecrets() error {
	if c.Unsigned {
		return errors.Join(c.validateUnsigned()...)
	}
	var errs []error
	if n := len(c.SigningSecrets); n > maxSecrets {
		return destination.Invalid("signing_secrets", "are %d, more than %d", n, maxSecrets)
	} else if p := len(c.PreviousSecrets); n+p > maxSecrets {
		return destination.Invalid("previous_secrets", "and signing_secrets are %d, more than %d; wait until one "+
			"has ended, or take one out", n+p, maxSecrets)
	}
	switch c.Signature {
	case "", SignatureV1, SignatureV1a:
	default:
		errs = append(errs, destination.Invalid("signature", "is not v1 or v1a"))
	}
	var seen []key
	check := func(path string, s destination.Secret) {
		if !s.IsSet() {
			errs = append(errs, destination.Require(path, ""))
			return
		}
		k, problem := signingKey(s, seen)
		if problem != "" {
			errs = append(errs, destination.Invalid(path, "%s", problem))
		}
		if k.shared != nil || k.private != nil {
			seen = append(seen, k)
		}
	}
	for i, s := range c.SigningSecrets {
		check(fmt.Sprintf("signing_secrets[%d]", i), s)
	}
	for i, p := range c.PreviousSecrets {
		path := fmt.Sprintf("previous_secrets[%d]", i)
		check(path+".secret", p.Secret)
		errs = append(errs, destination.Require(path+".until", p.Until))
	}
	return errors.Join(errs...)
}

// signingKey returns the key of a secret, or what is wrong with it. seen are the keys before it.
func signingKey(s destination.Secret, seen []key) (k key, problem string) {
	if s.IsRedacted() {
		return key{}, fmt.Sprintf("is the placeholder %q; give the value", destination.Redacted)
	}
	k, problem = decodeSecret(s.Reveal())
	switch {
	case problem != "":
		return key{}, problem
	case k.shared == nil && k.private == nil:
		return key{}, `is a public key, which cannot sign; give the private one, which begins with "whsk_"`
	case slices.ContainsFunc(seen, k.equal):
		return key{}, "is a duplicate"
	}
	return k, k.weakness()
}

func (c Config) validateUnsigned() []error {
	var errs []error
	for path, set := range map[string]bool{
		"signing_secrets": len(c.SigningSecrets) > 0, "previous_secrets": len(c.PreviousSecrets) > 0,
		"signature": c.Signature != "",
	} {
		if set {
			errs = append(errs,
				&destination.FieldError{Path: path, Code: "conflict", Message: "is given although unsigned is set"})
		}
	}
	return errs
}

// signing returns the secrets that sign at a time, the newest first.
func (c Config) signing(at time.Time) []destination.Secret {
	if c.Unsigned {
		return nil
	}
	secrets := slices.Clone(c.SigningSecrets)
	for _, p := range c.PreviousSecrets {
		if p.Until.After(at) {
			secrets = append(secrets, p.Secret)
		}
	}
	return secrets
}

func (c Config) keys(at time.Time) ([]key, error) {
	if c.Unsigned {
		return nil, nil
	}
	active := c.signing(at)
	secrets := make([]string, len(active))
	for i, s := range active {
		secrets[i] = s.Reveal()
	}
	return signingKeys(secrets)
}

func (c Config) generate() destination.Secret {
	if c.Signature == SignatureV1a {
		return GenerateKey()
	}
	return GenerateSecret()
}

// Complete implements handler.Signer. A config without signing secrets that is not Unsigned keeps
// the stored ones, or gets a generated one. Complete rejects a client certificate that has expired.
func (h *Handler) Complete(config, stored any) (any, error) {
	c, ok := config.(Config)
	if !ok {
		return nil, wrongConfig(config)
	}
	if !c.Unsigned && len(c.SigningSecrets) == 0 {
		if before, ok := stored.(Config); ok {
			c.SigningSecrets = before.SigningSecrets
			if len(c.PreviousSecrets) == 0 {
				c.PreviousSecrets = before.PreviousSecrets
			}
		}
	}
	if !c.Unsigned && len(c.SigningSecrets) == 0 {
		c.SigningSecrets = []destination.Secret{c.generate()}
	}
	if err := errors.Join(c.validateSecrets(), destination.Within("tls", c.TLS.current(h.now()))); err != nil {
		return nil, err
	}
	return c, nil
}

// SigningSecrets implements handler.Signer. For a private key it returns the public key.
func (h *Handler) SigningSecrets(config any) []destination.Secret {
	c, _ := config.(Config)
	secrets := c.signing(h.now())
	for i, s := range secrets {
		if k, problem := decodeSecret(s.Reveal()); problem == "" && k.private != nil {
			secrets[i] = destination.NewSecret(k.verifier())
		}
	}
	return secrets
}

// Rotate implements handler.Signer. The previous secrets sign until r.Until, or until their own end
// if that is earlier; ended ones are dropped. A generated secret is for Config.Signature or,
// without that, for the scheme of the newest secret. More than 8 secrets at once are rejected.
func (h *Handler) Rotate(config any, r handler.Rotation) (any, error) {
	c, ok := config.(Config)
	if !ok {
		return nil, wrongConfig(config)
	}
	if c.Unsigned {
		return nil, &destination.FieldError{
			Path: "unsigned", Code: "conflict",
			Message: "is set, so that there is no secret to rotate; take it out first",
		}
	}
	secret := r.Secret
	if !secret.IsSet() {
		secret = c.generate()
		if c.Signature == "" && len(c.SigningSecrets) > 0 &&
			strings.HasPrefix(c.SigningSecrets[0].Reveal(), privatePrefix) {
			secret = GenerateKey()
		}
	}
	fresh, problem := decodeSecret(secret.Reveal())
	same := func(s destination.Secret) bool {
		k, wrong := decodeSecret(s.Reveal())
		return problem == "" && wrong == "" && k.equal(fresh)
	}
	if len(c.SigningSecrets) > 0 && same(c.SigningSecrets[0]) {
		return nil, destination.Invalid(
			"signing_secrets[0]", "is the secret that signs already; bring another, or none to have one generated",
		)
	}
	var previous []PreviousSecret
	keep := func(s destination.Secret, until time.Time) {
		if until.After(r.Now) && !same(s) {
			previous = append(previous, PreviousSecret{Secret: s, Until: until.UTC()})
		}
	}
	for _, s := range c.SigningSecrets {
		keep(s, r.Until)
	}
	for _, p := range c.PreviousSecrets {
		until := p.Until
		if r.Until.Before(until) {
			until = r.Until
		}
		keep(p.Secret, until)
	}
	c.SigningSecrets, c.PreviousSecrets = []destination.Secret{secret}, previous
	if err := c.validateSecrets(); err != nil {
		return nil, err
	}
	return c, nil
}
