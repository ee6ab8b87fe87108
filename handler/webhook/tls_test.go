package webhook_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

// authority issues certificates for a day, from an hour ago.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  string
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key, block("CERTIFICATE", der)}
}

func (a authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue returns a certificate in PEM for a key, that may be used for what is said.
func (a authority) issue(t testing.TB, public crypto.PublicKey, usage ...x509.ExtKeyUsage) string {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE", der)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func block(typ string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
}

func pkcs8(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der)
}

// mutual starts a receiver that demands a client certificate, and returns a config that has one.
func mutual(t testing.TB, edit ...func(*tls.Config)) (*receiver, webhook.Config) {
	t.Helper()
	servers, clients := newAuthority(t), newAuthority(t)
	serverKey, clientKey := newKey(t), newKey(t)
	pair, err := tls.X509KeyPair([]byte(servers.issue(t, serverKey.Public(), x509.ExtKeyUsageServerAuth)), []byte(pkcs8(t, serverKey)))
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{}
	r.Server = httptest.NewUnstartedServer(r.record(nil))
	r.EnableHTTP2 = true
	r.Config.ErrorLog = quiet
	r.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.pool(), MinVersion: tls.VersionTLS12}
	for _, e := range edit {
		e(r.TLS)
	}
	r.StartTLS()
	t.Cleanup(r.Close)
	return r, webhook.Config{URL: r.URL, TLS: webhook.TLS{
		Certificate: clients.issue(t, clientKey.Public(), x509.ExtKeyUsageClientAuth), Key: destination.NewSecret(pkcs8(t, clientKey)), CA: servers.pem,
	}}
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	r, c := mutual(t)
	h := webhook.New()
	req := handlertest.Request(t, h, c, payload.JSON(1))
	attempt := func() {
		t.Helper()
		if _, err := h.Deliver(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	attempt()
	attempt()
	h.Forget(req.Destination.ID)
	attempt()
	if all := r.requests(); all[0].remote != all[1].remote || all[1].remote == all[2].remote {
		t.Errorf("connections %s, %s and, after Forget, %s", all[0].remote, all[1].remote, all[2].remote)
	}

	// Another destination does not get that certificate, nor its connections.
	without := c
	without.TLS = webhook.TLS{CA: c.TLS.CA}
	_, err := deliver(t, without, payload.JSON(1))
	if e := handler.Classify(err); e == nil || e.Category != handler.Network || !e.WillRetry() {
		t.Errorf("no certificate: %v", err)
	}
	without.TLS = webhook.TLS{}
	_, err = deliver(t, without, payload.JSON(1))
	if e := handler.Classify(err); e == nil || e.Category != handler.Network || !strings.Contains(err.Error(), "certificate is not accepted") {
		t.Errorf("no authority: %v", err)
	}
	if n := len(r.requests()); n != 3 {
		t.Errorf("%d requests came", n)
	}
}

// Up to TLS 1.2, a server says in the handshake what it thinks of the client's certificate.
// Afterwards that can be lost with the connection.
func TestClientCertificateIsRefused(t *testing.T) {
	t.Parallel()
	_, c := mutual(t, func(server *tls.Config) { server.MaxVersion = tls.VersionTLS12 })
	_, other := mutual(t)
	for hint, edit := range map[string]func(*webhook.TLS){
		"set tls.certificate and tls.key":         func(s *webhook.TLS) { s.Certificate, s.Key = "", destination.Secret{} },
		"check that it accepts the issuer of tls": func(s *webhook.TLS) { s.Certificate, s.Key = other.TLS.Certificate, other.TLS.Key },
	} {
		config := c
		edit(&config.TLS)
		_, err := deliver(t, config, payload.JSON(1))
		if e := handler.Classify(err); e == nil || e.Category != handler.Network || config.TLS.Certificate != "" && !strings.Contains(err.Error(), hint) {
			t.Errorf("%v, want %q", err, hint) // none at all is a handshake failure like any other
		}
		report := probeConfig(t, handlertest.Env(t), config)
		if last := report.Steps[len(report.Steps)-1]; report.OK || last.Name != "authenticate" || !strings.Contains(last.Finding, hint) {
			t.Errorf("%s", steps(report))
		}
	}
}

func TestMutualTLSProbe(t *testing.T) {
	t.Parallel()
	r, c := mutual(t)
	env := handlertest.Env(t)
	report := probeConfig(t, env, c)
	if !report.OK || len(report.Steps) != 3 || !strings.Contains(steps(report), "asked for the client certificate") {
		t.Errorf("%s", steps(report))
	}
	if len(report.Warnings) != 1 || report.Warnings[0].Code != "client_certificate_expires" || report.Warnings[0].Until.IsZero() {
		t.Errorf("%+v", report.Warnings)
	}
	none := c
	none.TLS = webhook.TLS{CA: c.TLS.CA}
	if report := probeConfig(t, env, none); report.OK || !strings.Contains(steps(report), "asks for a client certificate, and there is none") {
		t.Errorf("%s", steps(report))
	}
	foreign := c
	_, other := mutual(t)
	foreign.TLS.Certificate, foreign.TLS.Key = other.TLS.Certificate, other.TLS.Key
	if report := probeConfig(t, env, foreign); report.OK || strings.Contains(steps(report), "PRIVATE KEY") {
		t.Errorf("%s", steps(report))
	}
	if n := len(r.requests()); n != 1 {
		t.Errorf("%d requests came", n)
	}

	env.Now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	report = probeConfig(t, env, c)
	if last := report.Steps[len(report.Steps)-1]; report.OK || last.Name != "tls" || !strings.Contains(last.Finding, "has expired") {
		t.Errorf("%s", steps(report))
	}
}

func TestClientCertificateExpires(t *testing.T) {
	t.Parallel()
	_, c := mutual(t)
	h := webhook.New()
	req := handlertest.Request(t, h, c, payload.JSON(1))
	env := handlertest.Env(t)
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	if w := h.Warn(req.Config); len(w) != 1 || w[0].Path != "tls.certificate" || w[0].Code != "expires" {
		t.Errorf("a day before: %+v", w)
	}
	env.Now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	if w := h.Warn(req.Config); len(w) != 2 || w[0].Code != "expired" || w[1].Path != "tls.ca" {
		t.Errorf("a day after: %+v", w)
	}
	if _, err := h.Complete(req.Config, nil); !slices.Equal(paths(err), []string{"tls.certificate"}) {
		t.Errorf("saved: %v", err)
	}
	raw, err := destination.Reveal(req.Config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ParseConfig(raw); err != nil {
		t.Errorf("what is stored cannot be read any more: %v", err)
	}
	_, err = h.Deliver(t.Context(), req)
	if e := handler.Classify(err); e == nil || e.Category != handler.Authentication || !e.WillRetry() || !strings.Contains(err.Error(), "tls.certificate: has expired on") {
		t.Errorf("delivered: %v", err)
	}
}

func TestTLSRules(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	key, other := newKey(t), newKey(t)
	cert := ca.issue(t, key.Public(), x509.ExtKeyUsageClientAuth)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
	const traditional = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"
	for name, c := range map[string]struct {
		cert, key, ca string
		want          []string
	}{
		"none":              {},
		"authority alone":   {ca: ca.pem + "\n" + ca.pem},
		"PKCS #8":           {cert: cert, key: pkcs8(t, key)},
		"SEC 1":             {cert: cert + ca.pem, key: block("EC PRIVATE KEY", sec1), ca: ca.pem},
		"with parameters":   {cert: cert, key: block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + block("EC PRIVATE KEY", sec1)},
		"PKCS #1":           {cert: ca.issue(t, rsaKey.Public()), key: block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		"Ed25519":           {cert: ca.issue(t, edKey.Public()), key: pkcs8(t, edKey)},
		"no key":            {cert: cert, want: []string{"tls.key"}},
		"no certificate":    {key: pkcs8(t, key), want: []string{"tls.certificate"}},
		"another's key":     {cert: cert, key: pkcs8(t, other), want: []string{"tls.key"}},
		"the wrong order":   {cert: ca.pem + cert, key: pkcs8(t, key), want: []string{"tls.key"}},
		"placeholder":       {cert: cert, key: destination.Redacted, want: []string{"tls.key"}},
		"encrypted":         {cert: cert, key: encrypted, want: []string{"tls.key"}},
		"encrypted, old":    {cert: cert, key: traditional, want: []string{"tls.key"}},
		"no PEM":            {cert: "canary-text", key: "canary-text", ca: "canary-text", want: []string{"tls.ca", "tls.certificate", "tls.key"}},
		"broken":            {cert: block("CERTIFICATE", []byte("x")), key: block("PRIVATE KEY", []byte("canary-text")), ca: block("CERTIFICATE", nil), want: []string{"tls.ca", "tls.certificate", "tls.key"}},
		"key as a CA":       {ca: pkcs8(t, key), want: []string{"tls.ca"}},
		"text after it":     {cert: cert + "canary-text", key: pkcs8(t, key), want: []string{"tls.certificate"}},
		"all in one":        {cert: cert + pkcs8(t, key), key: pkcs8(t, key), want: []string{"tls.certificate"}},
		"too long":          {ca: strings.Repeat(" ", 1<<17), want: []string{"tls.ca"}},
		"certificate twice": {cert: cert, key: cert, want: []string{"tls.key"}},
	} {
		config := webhook.Config{URL: "https://example.com", TLS: webhook.TLS{Certificate: c.cert, Key: destination.NewSecret(c.key), CA: c.ca}}
		err := config.Validate()
		if got := paths(err); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q: %v", name, got, c.want, err)
		}
		if err != nil && (strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), strings.Split(pkcs8(t, key), "\n")[1])) {
			t.Errorf("%s is quoted: %v", name, err)
		}
		if shown, err := json.Marshal(config); err != nil || c.key != "" && strings.Contains(string(shown), "PRIVATE KEY") && name != "all in one" || strings.Contains(fmt.Sprintf("%+v", config.TLS.Key), "PRIVATE") {
			t.Errorf("%s shows: %s, %v", name, shown, err)
		}
	}
	plain := webhook.Config{URL: "http://127.0.0.1", TLS: webhook.TLS{CA: ca.pem}}
	if got := paths(plain.Validate()); !slices.Equal(got, []string{"tls"}) {
		t.Errorf("over plain http: %q", got)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	h := webhook.New()
	for name, c := range map[string]struct {
		config webhook.Config
		want   []string
	}{
		"none":                  {config: webhook.Config{URL: "https://example.com/?tenant=7", Auth: webhook.Bearer("t")}},
		"loopback":              {config: webhook.Config{URL: "http://127.0.0.1:8080"}},
		"plain http":            {webhook.Config{URL: "http://example.com", AllowHTTP: true}, []string{"url insecure"}},
		"with credentials":      {webhook.Config{URL: "http://example.com", AllowHTTP: true, Auth: webhook.Basic("u", "p")}, []string{"url insecure"}},
		"allowed for nothing":   {webhook.Config{URL: "https://example.com", AllowHTTP: true}, []string{"allow_http unused"}},
		"unsigned":              {webhook.Config{URL: "https://example.com", Unsigned: true}, []string{"unsigned insecure"}},
		"unsigned with auth":    {webhook.Config{URL: "https://example.com", Unsigned: true, Auth: webhook.Bearer("t")}, []string{"unsigned insecure"}},
		"credentials in a URL":  {webhook.Config{URL: "https://example.com/?access_token=canary&sig=canary&x=y&access_token=z"}, []string{"url insecure"}},
		"credentials in a head": {webhook.Config{URL: "https://example.com/", Headers: map[string]string{"X-Api-Token": "canary", "X-Tenant": "a"}}, []string{"headers.X-Api-Token insecure"}},
	} {
		var got []string
		for _, w := range h.Warn(c.config) {
			got = append(got, w.Path+" "+w.Code)
			if w.Message == "" || strings.Contains(w.Message, "canary") {
				t.Errorf("%s: %q", name, w.Message)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if err := c.config.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if strings.Contains(h.Warn(webhook.Config{URL: "http://example.com", AllowHTTP: true})[0].Message, "credentials") {
		t.Error("warns of credentials where there are none")
	}
	if w := h.Warn(17); w != nil {
		t.Errorf("%+v", w)
	}
	server := newAuthority(t)
	key := newKey(t)
	w := h.Warn(webhook.Config{URL: "https://example.com", TLS: webhook.TLS{Certificate: server.issue(t, key.Public(), x509.ExtKeyUsageServerAuth), Key: destination.NewSecret(pkcs8(t, key))}})
	if len(w) != 2 || w[0].Code != "expires" || w[1].Code != "invalid" || !strings.Contains(w[1].Message, "not made for clients") {
		t.Errorf("a server's certificate: %+v", w)
	}
}

// TLS settings need the transport of the service to be one that can be changed.
func TestTLSWithAForeignTransport(t *testing.T) {
	t.Parallel()
	_, c := mutual(t)
	h := webhook.New()
	req := handlertest.Request(t, h, c, payload.JSON(1))
	env := handlertest.Env(t)
	env.Client = &http.Client{Transport: http.NewFileTransport(http.Dir(t.TempDir()))}
	if err := h.Open(env); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Deliver(t.Context(), req); handler.Classify(err).Category != handler.Internal {
		t.Errorf("%v", err)
	}
}
