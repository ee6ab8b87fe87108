package seal_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/seal"
	"pgregory.net/rapid"
)

var here = seal.AD{Organization: "acme", Subject: "0190f5a0-0000-7000-8000-000000000001", Version: 3}

const secret = `{"password":"correct horse battery staple"}`

// key is a fixed key for an id, as hex.
func key(id string) string {
	sum := sha256.Sum256([]byte("test key " + id))
	return hex.EncodeToString(sum[:])
}

func local(t testing.TB, id string) seal.KeyWrapper {
	t.Helper()
	w, err := seal.Local(id, key(id))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func ring(t testing.TB, primary seal.KeyWrapper, older ...seal.KeyWrapper) *seal.Keyring {
	t.Helper()
	r, err := seal.NewKeyring(primary, older...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sealed(t testing.TB, r *seal.Keyring, plaintext string, ad seal.AD) []byte {
	t.Helper()
	b, err := r.Seal(t.Context(), []byte(plaintext), ad)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func requireOpens(t testing.TB, r *seal.Keyring, b []byte, ad seal.AD, want string) {
	t.Helper()
	got, err := r.Open(t.Context(), b, ad)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("opened as %q, want %q", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	r := ring(t, local(t, "2026-11"))
	ads := rapid.Custom(func(t *rapid.T) seal.AD {
		return seal.AD{
			Organization: rapid.StringN(1, 40, -1).Draw(t, "organization"),
			Subject:      rapid.StringN(1, 40, -1).Draw(t, "subject"),
			Version:      rapid.Int64().Draw(t, "version"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		plaintext := rapid.SliceOf(rapid.Byte()).Draw(t, "plaintext")
		ad, other := ads.Draw(t, "ad"), ads.Draw(t, "other ad")
		b, err := r.Seal(context.Background(), plaintext, ad)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Open(context.Background(), b, ad)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Fatalf("opened as %q, %v; want %q", got, err, plaintext)
		}
		if id, err := seal.KeyID(b); id != "2026-11" || err != nil {
			t.Fatalf("KeyID: %q, %v", id, err)
		}
		if len(plaintext) >= 8 && bytes.Contains(b, plaintext) {
			t.Fatal("the sealed value contains the plaintext")
		}
		if _, err := r.Open(context.Background(), b, other); ad != other && !errors.Is(err, seal.ErrOpen) {
			t.Fatalf("opened for another ad: %v", err)
		}
	})
}

func TestSealDrawsAKeyEachTime(t *testing.T) {
	t.Parallel()
	w := &fakeKMS{id: "kms"}
	r := ring(t, w)
	if a, b := sealed(t, r, secret, here), sealed(t, r, secret, here); bytes.Equal(a, b) {
		t.Error("the same secret was sealed to the same value twice")
	}
	if len(w.wraps) != 2 || bytes.Equal(w.wraps[0].dek, w.wraps[1].dek) {
		t.Error("the same data key was used twice")
	}
}

func TestSealBounds(t *testing.T) {
	t.Parallel()
	r := ring(t, local(t, "a"))
	largest := strings.Repeat("x", 1<<20)
	requireOpens(t, r, sealed(t, r, largest, here), here, largest)
	requireOpens(t, r, sealed(t, r, "", here), here, "")
	if _, err := r.Seal(t.Context(), make([]byte, 1<<20+1), here); err == nil {
		t.Error("more than 1 MiB was sealed")
	}
}

// A KMS is not asked about what cannot be right.
func TestMalformedValuesReachNoWrapper(t *testing.T) {
	t.Parallel()
	w := &fakeKMS{id: "k"}
	r := ring(t, w)
	value := func(version byte, id string, wrapped, ciphertext int) []byte {
		b := append([]byte{version, byte(len(id))}, id...)
		b = append(b, byte(wrapped>>8), byte(wrapped))
		return append(b, make([]byte, wrapped+ciphertext)...)
	}
	for name, b := range map[string][]byte{
		"another version":         value(2, "k", 32, 28),
		"no key id":               value(1, "", 32, 28),
		"a bad key id":            value(1, "k\n", 32, 28),
		"a long key id":           value(1, strings.Repeat("k", 65), 32, 28),
		"no wrapped key":          value(1, "k", 0, 28),
		"a long wrapped key":      value(1, "k", 8193, 28),
		"no room for the tag":     value(1, "k", 32, 27),
		"more than can be sealed": value(1, "k", 32, 28+1<<20+1),
	} {
		if _, err := r.Open(t.Context(), b, here); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("%s: %v", name, err)
		}
		if id, err := seal.KeyID(b); id != "" || !errors.Is(err, seal.ErrOpen) {
			t.Errorf("%s: key id %q, %v", name, id, err)
		}
	}
	if w.unwraps != 0 {
		t.Errorf("the wrapper was asked %d times", w.unwraps)
	}
	if _, err := r.Open(t.Context(), value(1, "k", 32, 28), here); !errors.Is(err, seal.ErrOpen) || w.unwraps != 1 {
		t.Errorf("a well-formed value: the wrapper was asked %d times, %v", w.unwraps, err)
	}
}

func TestADIsRequired(t *testing.T) {
	t.Parallel()
	r := ring(t, local(t, "a"))
	b := sealed(t, r, secret, here)
	for _, ad := range []seal.AD{{}, {Organization: "acme"}, {Subject: "x"}} {
		if _, err := r.Seal(t.Context(), []byte(secret), ad); err == nil {
			t.Errorf("sealed for %+v", ad)
		}
		if _, err := r.Open(t.Context(), b, ad); err == nil {
			t.Errorf("opened for %+v", ad)
		}
	}
}

// What one AD sealed opens for no other, also where the fields' texts run
// together to the same.
func TestSwapDoesNotOpen(t *testing.T) {
	t.Parallel()
	ads := []seal.AD{
		here,
		{Organization: "acme2", Subject: here.Subject, Version: here.Version},
		{Organization: here.Organization, Subject: here.Subject + "0", Version: here.Version},
		{Organization: here.Organization, Subject: here.Subject, Version: here.Version + 1},
		{Organization: here.Organization, Subject: here.Subject, Version: -here.Version},
		{Organization: here.Subject, Subject: here.Organization, Version: here.Version},
		{Organization: "ab", Subject: "c"}, {Organization: "a", Subject: "bc"},
		{Organization: "ab", Subject: "\x00c"}, {Organization: "ab\x00", Subject: "c"},
	}
	// The fake KMS ignores associated data: the secret is bound by itself.
	for _, w := range []seal.KeyWrapper{local(t, "a"), &fakeKMS{id: "kms"}} {
		r := ring(t, w)
		for i, from := range ads {
			b := sealed(t, r, secret, from)
			for j, to := range ads {
				_, err := r.Open(t.Context(), b, to)
				if i == j && err != nil {
					t.Errorf("%s: %+v: %v", w.ID(), from, err)
				}
				if i != j && !errors.Is(err, seal.ErrOpen) {
					t.Errorf("%s: sealed for %+v, opened for %+v: %v", w.ID(), from, to, err)
				}
			}
		}
	}
}

// The data key is bound by itself too, for both what it belongs to and the key
// that it is said to be wrapped with.
func TestWrapIsBound(t *testing.T) {
	t.Parallel()
	a, b := &fakeKMS{id: "a"}, &fakeKMS{id: "b"}
	other := here
	other.Version++
	sealed(t, ring(t, a), secret, here)
	sealed(t, ring(t, a), secret, other)
	sealed(t, ring(t, b), secret, here)
	seen := map[string]bool{}
	for _, w := range append(a.wraps, b.wraps...) {
		seen[string(w.ad)] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d different associated data for three data keys, want 3", len(seen))
	}
}

func TestKeyIDIsBound(t *testing.T) {
	t.Parallel()
	// One key under two ids, and a wrapper that ignores associated data.
	r := ring(t, &fakeKMS{id: "a"}, &fakeKMS{id: "b"})
	b := sealed(t, r, secret, here)
	b[2] = 'b'
	if _, err := r.Open(t.Context(), b, here); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("opened with another key id: %v", err)
	}
}

func TestTamper(t *testing.T) {
	t.Parallel()
	r := ring(t, local(t, "a"), local(t, "b"))
	good := sealed(t, r, secret, here)
	refuse := func(what string, b []byte) {
		t.Helper()
		got, err := r.Open(t.Context(), b, here)
		var unknown *seal.UnknownKeyError
		if got != nil || (!errors.Is(err, seal.ErrOpen) && !errors.As(err, &unknown)) {
			t.Errorf("%s: got %q, %v", what, got, err)
			return
		}
		if strings.Contains(err.Error(), "correct horse") {
			t.Errorf("%s: the secret shows in %v", what, err)
		}
	}
	for i := range good {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			refuse(fmt.Sprintf("bit %d of byte %d turned", bit, i), b)
		}
		refuse(fmt.Sprintf("cut to %d bytes", i), good[:i])
		refuse(fmt.Sprintf("without byte %d", i), append(bytes.Clone(good[:i]), good[i+1:]...))
	}
	refuse("with a byte more", append(bytes.Clone(good), 0))
	refuse("nil", nil)
	if _, err := r.Open(t.Context(), good, here); err != nil {
		t.Errorf("opening changed the value: %v", err)
	}
}

func TestUnknownKey(t *testing.T) {
	t.Parallel()
	b := sealed(t, ring(t, local(t, "2025-01")), secret, here)
	r := ring(t, local(t, "2026-11"))
	_, err := r.Open(t.Context(), b, here)
	var unknown *seal.UnknownKeyError
	if !errors.As(err, &unknown) || unknown.ID != "2025-01" || !strings.Contains(err.Error(), `"2025-01"`) {
		t.Errorf("got %v, want it to name the key", err)
	}
	if errors.Is(err, seal.ErrOpen) {
		t.Error("a missing key reads as a damaged value")
	}
	if _, _, err := r.Rewrap(t.Context(), b, here); !errors.As(err, &unknown) {
		t.Errorf("Rewrap: %v", err)
	}
	// The right id with another key behind it.
	wrong, err := seal.Local("2025-01", key("another"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring(t, wrong).Open(t.Context(), b, here); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("another key of that id: %v", err)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	older, newer := local(t, "2025"), local(t, "2026")
	before, during, after := ring(t, older), ring(t, newer, older), ring(t, newer)
	b := sealed(t, before, secret, here)

	requireOpens(t, during, b, here, secret)
	other := here
	other.Version++
	if _, _, err := during.Rewrap(t.Context(), b, other); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("rewrapped for another ad: %v", err)
	}
	moved, changed, err := during.Rewrap(t.Context(), b, here)
	if err != nil || !changed {
		t.Fatalf("Rewrap: changed %v, %v", changed, err)
	}
	if id, _ := seal.KeyID(moved); id != "2026" {
		t.Errorf("rewrapped with %q", id)
	}
	requireOpens(t, after, moved, here, secret)
	if _, err := before.Open(t.Context(), moved, here); err == nil {
		t.Error("the older key still opens it")
	}

	again, changed, err := during.Rewrap(t.Context(), moved, here)
	if err != nil || changed || !bytes.Equal(again, moved) {
		t.Errorf("rewrapped a second time: changed %v, %v", changed, err)
	}
	if id, _ := seal.KeyID(sealed(t, during, secret, here)); id != "2026" {
		t.Errorf("the primary key is %q", id)
	}
	if _, _, err := during.Rewrap(t.Context(), []byte("nonsense"), here); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("rewrapped nonsense: %v", err)
	}
}

func TestNewKeyring(t *testing.T) {
	t.Parallel()
	a, b := local(t, "a"), local(t, "b")
	long := &fakeKMS{id: strings.Repeat("k", 64)}
	if _, err := seal.NewKeyring(a, b, long); err != nil {
		t.Errorf("three good keys: %v", err)
	}
	for name, tt := range map[string]struct {
		primary seal.KeyWrapper
		older   []seal.KeyWrapper
		want    []string
	}{
		"nil primary":        {nil, nil, []string{"primary key is nil"}},
		"nil older":          {a, []seal.KeyWrapper{b, nil}, []string{"older key 2 is nil"}},
		"twice":              {a, []seal.KeyWrapper{b, local(t, "a")}, []string{`"a" is a duplicate (older key 2)`}},
		"twice among older":  {a, []seal.KeyWrapper{b, b}, []string{`"b" is a duplicate (older key 2)`}},
		"all joined":         {nil, []seal.KeyWrapper{nil, b, b}, []string{"primary key is nil", "older key 1 is nil", "older key 3"}},
		"id empty":           {&fakeKMS{}, nil, []string{"key id"}},
		"id too long":        {&fakeKMS{id: strings.Repeat("k", 65)}, nil, []string{"it has 65"}},
		"id with a slash":    {&fakeKMS{id: "a/b"}, nil, []string{"key id"}},
		"id with a space":    {&fakeKMS{id: " a"}, nil, []string{"key id"}},
		"id not ASCII":       {&fakeKMS{id: "é"}, nil, []string{"key id"}},
		"id with a new line": {&fakeKMS{id: "a\n"}, nil, []string{"key id"}},
	} {
		r, err := seal.NewKeyring(tt.primary, tt.older...)
		if r != nil || err == nil {
			t.Errorf("%s: got no error", name)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q in it", name, err, want)
			}
		}
	}
}

func TestWrapperFails(t *testing.T) {
	t.Parallel()
	away := errors.New("kms: connection refused")
	good := ring(t, &fakeKMS{id: "kms"})
	b := sealed(t, good, secret, here)

	failing := ring(t, &fakeKMS{id: "kms", err: away})
	if _, err := failing.Seal(t.Context(), []byte(secret), here); !errors.Is(err, away) {
		t.Errorf("Seal: %v", err)
	}
	if _, err := failing.Open(t.Context(), b, here); !errors.Is(err, away) || errors.Is(err, seal.ErrOpen) {
		t.Errorf("Open: got %v, want the wrapper's error and not ErrOpen", err)
	}
	moved, changed, err := ring(t, &fakeKMS{id: "new", err: away}, &fakeKMS{id: "kms"}).Rewrap(t.Context(), b, here)
	if !errors.Is(err, away) || changed || moved != nil {
		t.Errorf("Rewrap: changed %v, %v", changed, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := good.Open(ctx, b, here); !errors.Is(err, context.Canceled) {
		t.Errorf("the context does not reach the wrapper: %v", err)
	}

	for name, size := range map[string]int{"nothing": 0, "too much": 8193} {
		w := &fakeKMS{id: "kms", wrapped: make([]byte, size)}
		if _, err := ring(t, w).Seal(t.Context(), []byte(secret), here); err == nil {
			t.Errorf("the wrapper gave %s: no error", name)
		}
	}
	largest := ring(t, &fakeKMS{id: "kms", pad: 8192 - 32})
	requireOpens(t, largest, sealed(t, largest, secret, here), here, secret)
	for _, size := range []int{0, 16, 31, 33} {
		w := &fakeKMS{id: "kms", unwrapped: make([]byte, size)}
		if _, err := ring(t, w).Open(t.Context(), b, here); err == nil {
			t.Errorf("a data key of %d bytes was taken", size)
		} else if errors.Is(err, seal.ErrOpen) {
			t.Errorf("a wrapper that gives %d bytes reads as a damaged value: %v", size, err)
		}
	}
}

// golden is secret, sealed for here with key "2026-11".
const golden = "" +
	"0107323032362d3131003c3e3c0fb593c608d3178dd04a12627a4c6e49b5b813d00bd3aeabb5eb2e85b10daae4b962d2de96" +
	"3e0e8959ed8dab62aab1500a477b8cfaecf4e9ea65fdfa664c89048f2e4de3a53a1812406723a077b1f36a2444cc6b3052a3" +
	"3fa8f977a718a26ea90cda393b3b7014d665f7808e37d137814e3d6f1e4d14a300235b299aa59d5e1681"

// What was sealed once opens for ever: this value must never need to change.
func TestFormatIsStable(t *testing.T) {
	t.Parallel()
	b, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	requireOpens(t, ring(t, local(t, "2026-11")), b, here, secret)
}

func FuzzOpen(f *testing.F) {
	r := ring(f, local(f, "2026-11"), local(f, "b"))
	good := sealed(f, r, secret, here)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte{})
	f.Add([]byte{1, 1, 'b', 0, 1, 0})
	f.Add([]byte{1, 64})
	f.Add([]byte{2, 1, 'b'})
	f.Add(append([]byte{1, 1, 'b', 0xff, 0xff}, make([]byte, 1<<16)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		id, idErr := seal.KeyID(b)
		got, err := r.Open(t.Context(), b, here)
		if !bytes.Equal(b, before) {
			t.Fatal("the value was changed")
		}
		var unknown *seal.UnknownKeyError
		switch {
		case err == nil:
			if string(got) != secret || id != "2026-11" {
				t.Fatalf("opened as %q of key %q", got, id)
			}
		case errors.As(err, &unknown):
			if idErr != nil || unknown.ID != id {
				t.Fatalf("KeyID gives %q, %v, but Open %v", id, idErr, err)
			}
		case !errors.Is(err, seal.ErrOpen):
			t.Fatalf("an error of no kind: %v", err)
		}
		if idErr != nil && !errors.Is(idErr, seal.ErrOpen) {
			t.Fatalf("KeyID: %v", idErr)
		}
	})
}

// fakeKMS wraps by exclusive or, and so is as weak as a wrapper can be: it
// authenticates nothing. It records what it is asked, and fails with err.
type fakeKMS struct {
	id        string
	err       error
	wrapped   []byte // instead of the real result, likewise unwrapped
	unwrapped []byte
	pad       int
	wraps     []wrap
	unwraps   int
}

type wrap struct{ dek, ad []byte }

func (k *fakeKMS) ID() string { return k.id }

func (k *fakeKMS) Wrap(ctx context.Context, dek, ad []byte) ([]byte, error) {
	k.wraps = append(k.wraps, wrap{bytes.Clone(dek), bytes.Clone(ad)})
	if k.wrapped != nil {
		return k.wrapped, nil
	}
	return append(xor(dek), make([]byte, k.pad)...), errors.Join(k.err, ctx.Err())
}

func (k *fakeKMS) Unwrap(ctx context.Context, wrapped, _ []byte) ([]byte, error) {
	k.unwraps++
	if k.unwrapped != nil {
		return k.unwrapped, nil
	}
	return xor(wrapped[:len(wrapped)-k.pad]), errors.Join(k.err, ctx.Err())
}

func xor(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ 0xa5
	}
	return out
}
