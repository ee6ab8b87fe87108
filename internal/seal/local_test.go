package seal_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/seal"
	"pgregory.net/rapid"
)

func TestLocalKeyForms(t *testing.T) {
	t.Parallel()
	raw := sha256.Sum256([]byte("0")) // has both characters in which the alphabets differ
	std := base64.StdEncoding.EncodeToString(raw[:])
	b := sealed(t, ring(t, mustLocal(t, std)), secret, here)
	for name, form := range map[string]string{
		"base64":              std,
		"base64, unpadded":    base64.RawStdEncoding.EncodeToString(raw[:]),
		"URL base64":          base64.URLEncoding.EncodeToString(raw[:]),
		"URL base64 unpadded": base64.RawURLEncoding.EncodeToString(raw[:]),
		"hex":                 hex.EncodeToString(raw[:]),
		"hex, upper case":     strings.ToUpper(hex.EncodeToString(raw[:])),
		"space around":        "\t " + std + "\r\n",
	} {
		w, err := seal.Local("k", form)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		requireOpens(t, ring(t, w), b, here, secret)
	}
}

func mustLocal(t *testing.T, key string) seal.KeyWrapper {
	t.Helper()
	w, err := seal.Local("k", key)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestLocalErrors(t *testing.T) {
	t.Parallel()
	bytesOf := func(n int) []byte { return []byte(strings.Repeat("\xa5\x5a\xff", 22)[:n]) }
	for name, tt := range map[string]struct{ id, key, want string }{
		"empty":           {"k", "", "is empty"},
		"only space":      {"k", " \n", "is empty"},
		"short hex":       {"k", hex.EncodeToString(bytesOf(16)), "hex of 16 bytes, want 32"},
		"long hex":        {"k", hex.EncodeToString(bytesOf(33)), "hex of 33 bytes, want 32"},
		"short base64":    {"k", base64.StdEncoding.EncodeToString(bytesOf(31)), "base64 of 31 bytes, want 32"},
		"long base64":     {"k", base64.RawURLEncoding.EncodeToString(bytesOf(33)), "base64 of 33 bytes, want 32"},
		"a passphrase":    {"k", "correct horse battery staple", "neither base64 nor hex (28 characters), want 32 bytes"},
		"bad id":          {"a b", hex.EncodeToString(bytesOf(32)), "key id"},
		"swapped, base64": {base64.StdEncoding.EncodeToString(bytesOf(32)), "2026-11", "key id"},
		"swapped, hex":    {hex.EncodeToString(bytesOf(32)), "2026-11", "neither base64 nor hex (7 characters)"},
	} {
		w, err := seal.Local(tt.id, tt.key)
		if w != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, tt.want)
			continue
		}
		for _, arg := range []string{tt.id, tt.key} {
			if len(arg) > 8 && strings.Contains(err.Error(), arg) {
				t.Errorf("%s: the key shows in %v", name, err)
			}
		}
	}
}

func TestLocalErrorsHideTheKey(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringN(8, 80, -1).Draw(t, "key")
		if _, err := seal.Local("k", key); err != nil && strings.Contains(err.Error(), strings.TrimSpace(key)) && strings.TrimSpace(key) != "" {
			t.Fatalf("the key shows in %v", err)
		}
	})
}

func TestPrintingHidesTheKey(t *testing.T) {
	t.Parallel()
	w := local(t, "2026-11")
	raw, err := hex.DecodeString(key("2026-11"))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("keys", "key", w, "ring", ring(t, w))
	slog.New(slog.NewJSONHandler(&log, nil)).Info("keys", "key", w, "ring", ring(t, w))
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb+" "+verb+" "+verb+"\n", w, ring(t, w), struct{ W seal.KeyWrapper }{w})
	}
	if !strings.Contains(out, "seal.Local(2026-11)") {
		t.Error("the key's id does not show")
	}
	for _, form := range []string{string(raw), hex.EncodeToString(raw), fmt.Sprintf("%d", raw)[1:40], fmt.Sprintf("%#v", raw)[7:40]} {
		if strings.Contains(strings.ToLower(out), form) {
			t.Errorf("the key shows as %q", form)
		}
	}
}
