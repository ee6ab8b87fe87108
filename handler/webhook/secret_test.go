package webhook_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

func validate(secrets ...string) error {
	c := webhook.Config{URL: "https://example.com"}
	for _, s := range secrets {
		c.SigningSecrets = append(c.SigningSecrets, destination.NewSecret(s))
	}
	return c.Validate()
}

func encode(prefix string, b []byte) string { return prefix + base64.StdEncoding.EncodeToString(b) }

// What is random is never called guessable, in any form that people bring it in.
func TestRandomSecretsAreTaken(t *testing.T) {
	t.Parallel()
	var seed [32]byte
	random := rand.NewChaCha8(seed)
	n := 1000
	if os.Getenv("DELIVERY_SOAK") != "" {
		n = 300_000
	}
	for i := range n {
		b := make([]byte, 24+i%41)
		_, _ = random.Read(b)
		for _, secret := range []string{
			encode("whsec_", b),
			encode("", b),
			"raw:" + hex.EncodeToString(b)[:24+i%25], // the weakest: 4 bits a byte
			"raw:" + base64.RawURLEncoding.EncodeToString(b)[:24+i%(len(b)-23)], // 6 bits a byte
			encode("whsk_", ed25519.NewKeyFromSeed(slices.Concat(b, b)[:32])),
		} {
			if err := validate(secret); err != nil {
				t.Fatalf("%d: %q: %v", i, secret, err)
			}
		}
	}
	for range 100 {
		if err := errors.Join(validate(webhook.GenerateSecret().Reveal()), validate(webhook.GenerateKey().Reveal())); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGuessableSecretsAreRefused(t *testing.T) {
	t.Parallel()
	count := make([]byte, 64)
	for i := range count {
		count[i] = byte(i)
	}
	down, even := slices.Clone(count), slices.Clone(count)
	slices.Reverse(down)
	for i := range even {
		even[i] *= 2
	}
	for name, b := range map[string][]byte{
		"zeros": make([]byte, 32), "ones": bytes.Repeat([]byte{255}, 64), "counted": count[:24], "counted from 7": count[7:39],
		"counted down": down[:32], "every second": even[:32], "two by turns": bytes.Repeat([]byte{1, 200}, 16),
		"eight four times": bytes.Repeat([]byte("k3!xQ9z_"), 4), "twelve twice": bytes.Repeat([]byte("password1234"), 2),
		"sixteen twice": bytes.Repeat([]byte("0f3c9a7be21d5846"), 2), "five letters": []byte("abcdeedcbaabcdeaecdbbdca"),
		"alphabet": []byte("abcdefghijklmnopqrstuvwxyz"), "digits": []byte("012345678901234567890123456789"),
	} {
		for _, prefix := range []string{"whsec_", "", "raw:", "whsk_"} {
			secret := encode(prefix, b)
			switch prefix {
			case "raw:":
				secret = prefix + string(b)
			case "whsk_":
				secret = encode(prefix, append(bytes.Clone(b), b...)[:32])
				if len(b) < 32 && name != "alphabet" && name != "digits" && name != "counted" {
					continue // becomes another pattern
				}
			}
			if err := validate(secret); !slices.Equal(paths(err), []string{"signing_secrets[0]"}) {
				t.Errorf("%s as %q: %v", name, prefix, err)
			}
		}
	}
}

func TestKnownSamplesAreRefused(t *testing.T) {
	t.Parallel()
	for _, sample := range []string{
		vectorSecret, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "raw:plJ3nmyCDGBKInavdOK15jsl", "whsec_5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH",
		"C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "raw:MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=",
	} {
		err := validate(sample)
		if !slices.Equal(paths(err), []string{"signing_secrets[0]"}) || !strings.Contains(err.Error(), "sample") || !strings.Contains(err.Error(), "generated") {
			t.Errorf("%s: %v", sample, err)
		}
		if err != nil && strings.Contains(err.Error(), sample[6:]) {
			t.Errorf("quoted: %v", err)
		}
	}
}

func TestFormsOfSecrets(t *testing.T) {
	t.Parallel()
	seed, err := base64.StdEncoding.DecodeString(oldSecret[len("whsec_"):])
	if err != nil {
		t.Fatal(err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := encode("whpk_", private[32:])
	torn := bytes.Clone(private)
	torn[40] ^= 1
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		secret string
		ok     bool
	}{
		"raw":                         {"raw:correct horse battery staple", true},
		"raw, too short":              {"raw:correct horse", false},
		"raw of 23":                   {"raw:correct horse battery s", false},
		"raw of 24":                   {"raw:correct horse battery st", true},
		"raw of 65":                   {"raw:" + strings.Repeat("correct horse", 5), false},
		"raw with a space at its end": {"raw:correct horse battery staple ", false},
		"raw with a line end":         {"raw:correct horse battery staple\n", false},
		"text that is not said to be": {"correct horse battery staple", false},
		"seed":                        {encode("whsk_", seed), true},
		"seed and public key":         {encode("whsk_", private), true},
		"halves of two keys":          {encode("whsk_", torn), false},
		"public key":                  {public, false},
		"PKCS #8":                     {encode("whsk_", pkcs8), false},
		"half a seed":                 {encode("whsk_", seed[:16]), false},
		"no base64":                   {"whsk_%%%", false},
	} {
		err := validate(c.secret)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "horse") || strings.Contains(err.Error(), c.secret)) {
			t.Errorf("%s is quoted: %v", name, err)
		}
	}
	for _, s := range []string{encode("whsk_", seed), encode("whsk_", private)} {
		if got, err := webhook.PublicKey(destination.NewSecret(s)); err != nil || got != public {
			t.Errorf("%s, %v", got, err)
		}
	}
	for _, s := range []string{"", newSecret, public, "whsk_AAAA"} {
		if got, err := webhook.PublicKey(destination.NewSecret(s)); !errors.Is(err, webhook.ErrSecret) || got != "" {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	if err := validate(encode("whsk_", seed), encode("whsk_", private)); !slices.Equal(paths(err), []string{"signing_secrets[1]"}) {
		t.Errorf("the same key in two forms: %v", err)
	}
	if err := validate(newSecret, encode("whsk_", private)); err != nil {
		t.Errorf("two schemes: %v", err)
	}
}

func TestPreviousSecretsRules(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	for raw, want := range map[string][]string{
		`"previous_secrets":[{"secret":"` + oldSecret + `","until":"2020-01-01T00:00:00Z"}]`:       nil, // what has ended can be read
		`"previous_secrets":[{"secret":"` + oldSecret + `"}]`:                                      {"previous_secrets[0].until"},
		`"previous_secrets":[{"until":"2020-01-01T00:00:00Z"}]`:                                    {"previous_secrets[0].secret"},
		`"previous_secrets":[{"secret":"` + newSecret + `","until":"2020-01-01T00:00:00Z"}]`:       {"previous_secrets[0].secret"},
		`"previous_secrets":[{"secret":"[redacted]","until":"2020-01-01T00:00:00Z"}]`:              {"previous_secrets[0].secret"},
		`"previous_secrets":[{"secret":"` + oldSecret + `","until":"` + oldSecret + `"}]`:          {""},
		`"previous_secrets":[{"secret":"` + oldSecret + `","until":"2020-01-01T00:00:00Z","x":1}]`: {"x"},
		`"signature":"v2"`:  {"signature"},
		`"signature":"v1a"`: nil,
	} {
		_, err := h.ParseConfig(json.RawMessage(`{"url":"https://example.com","signing_secrets":["` + newSecret + `"],` + raw + `}`))
		if got := paths(err); !slices.Equal(got, want) || err != nil && strings.Contains(err.Error(), oldSecret[8:]) {
			t.Errorf("%s: %q, want %q: %v", raw, got, want, err)
		}
	}
	c := webhook.Config{URL: "https://example.com", Unsigned: true, Signature: webhook.SignatureV1, PreviousSecrets: []webhook.PreviousSecret{{}}}
	if got := paths(c.Validate()); !slices.Equal(got, []string{"previous_secrets", "signature"}) {
		t.Errorf("unsigned: %q", got)
	}
}

func rotate(t testing.TB, h *webhook.Handler, c webhook.Config, r handler.Rotation) webhook.Config {
	t.Helper()
	v, err := h.Rotate(c, r)
	if err != nil {
		t.Fatal(err)
	}
	return v.(webhook.Config)
}

// The state machine of a destination's secrets: which sign at a time is what a simple list says.
func TestRotation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		now := time.Date(2026, 6, 21, 10, 0, 0, 0, time.UTC)
		h := webhook.New()
		env := handlertest.Env(t)
		env.Now = func() time.Time { return now }
		if err := h.Open(env); err != nil {
			r.Fatal(err)
		}
		v, err := h.Complete(webhook.Config{URL: "https://example.com"}, nil)
		if err != nil {
			r.Fatal(err)
		}
		config := v.(webhook.Config)
		type known struct {
			secret destination.Secret
			until  time.Time // zero: for ever
		}
		all := []known{{secret: config.SigningSecrets[0]}}
		active := func() (secrets []string) {
			for _, k := range all {
				if k.until.IsZero() || k.until.After(now) {
					secrets = append(secrets, k.secret.Reveal())
				}
			}
			return secrets
		}
		r.Repeat(map[string]func(*rapid.T){
			"": func(r *rapid.T) {
				var got []string
				for _, s := range h.SigningSecrets(config) {
					got = append(got, s.Reveal())
				}
				if want := active(); !slices.Equal(got, want) {
					r.Fatalf("%d sign, want %d", len(got), len(want))
				}
				if err := config.Validate(); err != nil {
					r.Fatal(err)
				}
			},
			"wait": func(r *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(1, 48).Draw(r, "hours")) * time.Hour) },
			"rotate": func(r *rapid.T) {
				until := now.Add(time.Duration(rapid.IntRange(-1, 72).Draw(r, "overlap")) * time.Hour)
				rotation := handler.Rotation{Now: now, Until: until}
				if rapid.Bool().Draw(r, "brought") {
					rotation.Secret = webhook.GenerateSecret()
				}
				v, err := h.Rotate(config, rotation)
				if len(active()) == 8 && until.After(now) {
					if !slices.Equal(paths(err), []string{"previous_secrets"}) {
						r.Fatalf("a ninth secret: %v", err)
					}
					return
				}
				if err != nil {
					r.Fatal(err)
				}
				before := config
				config = v.(webhook.Config)
				if len(before.SigningSecrets) != 1 || !before.SigningSecrets[0].Equal(all[0].secret) {
					r.Fatal("the config that was given is changed")
				}
				if rotation.Secret.IsSet() && !config.SigningSecrets[0].Equal(rotation.Secret) {
					r.Fatal("the secret that was brought does not sign")
				}
				next := []known{{secret: config.SigningSecrets[0]}}
				for _, k := range all {
					if k.until.IsZero() || until.Before(k.until) {
						k.until = until
					}
					if k.until.After(now) {
						next = append(next, k)
					}
				}
				all = next
				if len(config.PreviousSecrets) != len(all)-1 {
					r.Fatal("ended secrets are kept")
				}
			},
		})
	})
}

func TestRotationRefuses(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	now := time.Now()
	c := webhook.Config{URL: "https://example.com", SigningSecrets: secrets(newSecret)}
	for name, r := range map[string]handler.Rotation{
		"the same":      {Secret: destination.NewSecret(newSecret)},
		"the same, raw": {Secret: destination.NewSecret(newSecret[len("whsec_"):])},
		"a sample":      {Secret: destination.NewSecret(vectorSecret)},
		"short":         {Secret: destination.NewSecret("whsec_AAAA")},
		"a placeholder": {Secret: destination.NewSecret(destination.Redacted)},
		"a public key":  {Secret: destination.NewSecret("whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")},
	} {
		r.Now, r.Until = now, now.Add(time.Hour)
		if _, err := h.Rotate(c, r); !slices.Equal(paths(err), []string{"signing_secrets[0]"}) || strings.Contains(err.Error(), r.Secret.Reveal()) && !r.Secret.IsRedacted() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := h.Rotate(webhook.Config{URL: "https://example.com", Unsigned: true}, handler.Rotation{Now: now}); !slices.Equal(paths(err), []string{"unsigned"}) {
		t.Errorf("unsigned: %v", err)
	}
	if _, err := h.Rotate(17, handler.Rotation{Now: now}); err == nil {
		t.Error("a foreign config is rotated")
	}
}

func TestRotationBackAndToAnotherScheme(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	now := time.Now()
	soon := now.Add(time.Hour)
	c := webhook.Config{URL: "https://example.com", SigningSecrets: secrets(oldSecret)}
	c = rotate(t, h, c, handler.Rotation{Secret: destination.NewSecret(newSecret), Now: now, Until: soon})
	c = rotate(t, h, c, handler.Rotation{Secret: destination.NewSecret(oldSecret), Now: now, Until: soon})
	if len(c.PreviousSecrets) != 1 || !c.PreviousSecrets[0].Secret.Equal(destination.NewSecret(newSecret)) || !c.SigningSecrets[0].Equal(destination.NewSecret(oldSecret)) {
		t.Errorf("back: %d previous", len(c.PreviousSecrets))
	}
	c.Signature = webhook.SignatureV1a
	c = rotate(t, h, c, handler.Rotation{Now: now, Until: soon})
	if got := h.SigningSecrets(c); len(got) != 3 || !strings.HasPrefix(got[0].Reveal(), "whpk_") || !strings.HasPrefix(got[1].Reveal(), "whsec_") {
		t.Errorf("to v1a: %d secrets", len(got))
	}
	if !strings.HasPrefix(c.SigningSecrets[0].Reveal(), "whsk_") {
		t.Error("SigningSecrets changed the config")
	}
	c.Signature = ""
	if c = rotate(t, h, c, handler.Rotation{Now: now}); !strings.HasPrefix(c.SigningSecrets[0].Reveal(), "whsk_") || len(c.PreviousSecrets) != 0 {
		t.Error("a rotation changes the scheme by itself, or keeps what was to end at once")
	}
}

// Requests are signed by those secrets that have not ended by the service's clock.
func TestWhatHasEndedDoesNotSign(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	end := time.Date(2026, 6, 21, 10, 0, 0, 0, time.UTC)
	h := webhook.New()
	req := handlertest.Request(t, h, webhook.Config{
		URL: r.URL, SigningSecrets: secrets(newSecret), PreviousSecrets: []webhook.PreviousSecret{{Secret: destination.NewSecret(oldSecret), Until: end}},
	}, payload.JSON(1))
	env := handlertest.Env(t)
	for i, now := range []time.Time{end.Add(-time.Second), end} {
		env.Now = func() time.Time { return now }
		if err := h.Open(env); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		got := r.requests()[i]
		if n := len(strings.Fields(got.header.Get("Webhook-Signature"))); n != 2-i {
			t.Errorf("%d signatures at %s", n, now)
		}
		if err := webhook.Verify([]string{newSecret}, got.header, got.body, webhook.Clock(env.Now)); err != nil {
			t.Error(err)
		}
		if err := webhook.Verify([]string{oldSecret}, got.header, got.body, webhook.Clock(env.Now)); (err == nil) != (i == 0) {
			t.Errorf("by the old one at %s: %v", now, err)
		}
	}
}

func TestPlaceholdersOfPreviousSecretsAreFilled(t *testing.T) {
	t.Parallel()
	c := webhook.Config{URL: "https://example.com", SigningSecrets: secrets(newSecret), PreviousSecrets: []webhook.PreviousSecret{
		{Secret: destination.NewSecret(oldSecret), Until: time.Date(2026, 6, 21, 10, 0, 0, 0, time.UTC)},
	}}
	shown, err := json.Marshal(c)
	if err != nil || strings.Contains(string(shown), oldSecret) || strings.Count(string(shown), destination.Redacted) != 2 {
		t.Fatalf("%s, %v", shown, err)
	}
	stored, err := destination.Reveal(c)
	if err != nil {
		t.Fatal(err)
	}
	back, err := destination.FillRedacted(shown, stored)
	if err != nil {
		t.Fatal(err)
	}
	v, err := webhook.New().ParseConfig(back)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := destination.Reveal(v); err != nil || !bytes.Equal(again, stored) {
		t.Errorf("%s, %v", again, err)
	}
}

// The signature of v1a is Ed25519 over "id.timestamp.body" (RFC 8032), which crypto/ed25519
// verifies.
func TestAsymmetricSignature(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	private := webhook.GenerateKey()
	public, err := webhook.PublicKey(private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(public, "whpk_"))
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{0, 20, 3 << 20} { // the last is sent as a stream
		c := webhook.Config{URL: r.URL, SigningSecrets: []destination.Secret{private, destination.NewSecret(newSecret)}}
		result, err := deliver(t, c, payload.Bytes("b", bytes.Repeat([]byte("z"), size)))
		if err != nil {
			t.Fatal(err)
		}
		got := r.requests()[i]
		first, second, _ := strings.Cut(got.header.Get("Webhook-Signature"), " ")
		signature, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(first, "v1a,"))
		message := got.header.Get("Webhook-Id") + "." + got.header.Get("Webhook-Timestamp") + "." + string(got.body)
		if err != nil || len(signature) != 64 || !ed25519.Verify(key, []byte(message), signature) || !strings.HasPrefix(second, "v1,") {
			t.Errorf("%d bytes: %q: %v", size, first, err)
		}
		for _, secret := range []string{public, newSecret} {
			if err := webhook.Verify([]string{secret}, got.header, got.body); err != nil {
				t.Errorf("%d bytes, %.6s: %v", size, secret, err)
			}
			flipped := append(bytes.Clone(got.body), 'y')
			if err := webhook.Verify([]string{secret}, got.header, flipped); !errors.Is(err, webhook.ErrSignature) {
				t.Errorf("changed, %.6s: %v", secret, err)
			}
		}
		if shown := fmt.Sprintf("%+v", result.Exchange); strings.Contains(shown, first) {
			t.Error("the signature is recorded")
		}
	}
	alone := http.Header{}
	for name, values := range r.requests()[1].header {
		alone[name] = values
	}
	alone.Set("Webhook-Signature", strings.Fields(alone.Get("Webhook-Signature"))[1]) // v1
	if err := webhook.Verify([]string{public}, alone, r.requests()[1].body); !errors.Is(err, webhook.ErrHeader) {
		t.Errorf("no v1a signature: %v", err)
	}
	if err := webhook.Verify([]string{private.Reveal()}, alone, nil); !errors.Is(err, webhook.ErrSecret) || strings.Contains(err.Error(), private.Reveal()[5:]) {
		t.Errorf("the private key in place of the public: %v", err)
	}
	if _, err := webhook.Sign([]string{public}, "id", time.Now(), nil); !errors.Is(err, webhook.ErrSecret) {
		t.Errorf("signing with a public key: %v", err)
	}
}

// Test 1 of RFC 8032, section 7.1, gives the keys; the message is that of the HMAC vector.
func TestAsymmetricKeysOfRFC8032(t *testing.T) {
	t.Parallel()
	private := "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
	public, err := webhook.PublicKey(destination.NewSecret(private))
	if err != nil || public != "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=" {
		t.Errorf("%s, %v", public, err)
	}
	header, err := webhook.Sign([]string{private}, vectorID, time.Unix(vectorTime, 0), []byte(vectorBody))
	if err != nil {
		t.Fatal(err)
	}
	if err := webhook.Verify([]string{public}, header, []byte(vectorBody), at(vectorTime)); err != nil {
		t.Error(err)
	}
}

func TestTooLargeForAsymmetric(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	c := webhook.Config{URL: r.URL, Signature: webhook.SignatureV1a}
	for _, known := range []bool{true, false} {
		for extra, ok := range map[int]bool{0: true, 1: false} {
			_, err := deliver(t, c, payload.Bytes("b", bytes.Repeat([]byte("z"), webhook.MaxWhole+extra)), func(req *handler.Request) {
				if !known {
					info := req.Payload.Info()
					info.Size, info.SHA256 = -1, ""
					req.Payload = payload.NewContent(info, req.Payload.OpenAt)
				}
			})
			if ok && err != nil {
				t.Errorf("at the limit, size known %t: %v", known, err)
			}
			if e := handler.Classify(err); !ok && (e == nil || e.Category != handler.Validation || e.WillRetry()) {
				t.Errorf("above it, size known %t: %v", known, err)
			}
		}
	}
	if n := len(r.requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
	if _, err := webhook.Sign([]string{webhook.GenerateKey().Reveal()}, "id", time.Now(), make([]byte, webhook.MaxWhole+1)); err == nil {
		t.Error("Sign takes it")
	}
}

// Secrets and signatures are foreign input: nothing panics, no secret is quoted, and only the
// signature passes.
func FuzzSecrets(f *testing.F) {
	f.Add(newSecret, "v1,AAAA")
	f.Add("whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=", "v1a,AAAA v1,AAAA")
	f.Add("whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", "v1a,"+strings.Repeat("A", 86)+"==")
	f.Add("raw:correct horse battery staple", "v1a")
	f.Add("whsec_", ",")
	f.Fuzz(func(t *testing.T, secret, signature string) {
		quoted := func(err error) bool {
			return err != nil && len(secret) > 12 && strings.Contains(err.Error(), secret)
		}
		header := vector()
		header.Set("Webhook-Signature", signature)
		err := webhook.Verify([]string{secret}, header, []byte(vectorBody), at(vectorTime))
		if quoted(err) {
			t.Errorf("quoted: %v", err)
		}
		if err := validate(secret); quoted(err) {
			t.Errorf("quoted: %v", err)
		}
		signed, signErr := webhook.Sign([]string{secret}, vectorID, time.Unix(vectorTime, 0), []byte(vectorBody))
		if signErr != nil {
			return
		}
		verifier := secret
		if public, err := webhook.PublicKey(destination.NewSecret(secret)); err == nil {
			verifier = public
		}
		if err := webhook.Verify([]string{verifier}, signed, []byte(vectorBody), at(vectorTime)); err != nil {
			t.Errorf("what a secret signs does not verify: %v", err)
		}
	})
}
