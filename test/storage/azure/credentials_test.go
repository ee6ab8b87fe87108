package azure_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage/azure"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

// signature is a shared access signature of a container, for some hours from now.
func signature(t testing.TB, in, permissions string, hours int) string {
	t.Helper()
	key, err := blob.NewSharedKeyCredential(account, accountKey)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	q, err := sas.BlobSignatureValues{
		Version: "2021-12-02", Protocol: sas.ProtocolHTTPSandHTTP, StartTime: now.Add(-48 * time.Hour), ExpiryTime: now.Add(time.Duration(hours) * time.Hour),
		ContainerName: in, Permissions: permissions,
	}.SignWithSharedKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return q.Encode()
}

func sigOf(t testing.TB, signature string) string {
	t.Helper()
	q, err := url.ParseQuery(signature)
	if err != nil || q.Get("sig") == "" {
		t.Fatal(signature, err)
	}
	return q.Get("sig")
}

func TestSignature(t *testing.T) {
	t.Parallel()
	in := newContainer(t)
	c := config(in)
	c.Credentials = azure.Credentials{Type: azure.SAS, SAS: destination.NewSecret("?" + signature(t, in, "racwdl", 1))}
	for _, size := range []int{100, 3 * mib} {
		h := azure.New()
		sent := uploads.Random(size)
		req := handlertest.Request(t, h, c, payload.Bytes("x", sent))
		result, err := h.Deliver(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(object(t, in, req.ItemID), sent) {
			t.Error("the blob differs")
		}
		if strings.Contains(result.Reference.URL, "sig=") {
			t.Errorf("the reference's URL is signed: %s", result.Reference.URL)
		}
	}
	// What may not be done is named in the terms of a signature.
	c.Credentials.SAS = destination.NewSecret(signature(t, in, "rl", 1))
	h := azure.New()
	_, err := h.Deliver(t.Context(), handlertest.Request(t, h, c, payload.JSON(1)))
	if err == nil || !strings.Contains(err.Error(), "create (c) or write (w)") {
		t.Errorf("%v", err)
	}
}

// entra is as much of Microsoft's identity service as a client's credentials need. It refuses what
// is not "right", and checks a certificate's assertion against that certificate.
type entra struct {
	*httptest.Server
	certificate *x509.Certificate
}

func newEntra(t *testing.T) *entra {
	t.Helper()
	e := &entra{}
	e.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		w.Header().Set("Content-Type", "application/json")
		base := e.URL + strings.Split(r.URL.Path, "/v2.0")[0]
		switch {
		case strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration"):
			_ = json.NewEncoder(w).Encode(map[string]string{
				"token_endpoint": base + "/oauth2/v2.0/token", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "issuer": base,
			})
		case r.Form.Get("client_secret") == "right" || e.signed(r.Form.Get("client_assertion")):
			_ = json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": token(t)})
		default:
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(map[string]string{
				"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided: " + r.Form.Get("client_secret") + "\r\nTrace ID: 1",
			})
		}
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *entra) signed(assertion string) bool {
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 || e.certificate == nil {
		return false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return false
	}
	return e.certificate.CheckSignature(x509.SHA256WithRSAPSS, []byte(parts[0]+"."+parts[1]), raw) == nil ||
		e.certificate.CheckSignature(x509.SHA256WithRSA, []byte(parts[0]+"."+parts[1]), raw) == nil
}

// token is one that Azurite takes: it looks at the claims, and at no signature.
func token(t *testing.T) string {
	t.Helper()
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
		"iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode(claims) + "." + encode([]byte("unchecked"))
}

// Service principals and the host's own identity, with tokens that the server takes over TLS.
func TestIdentities(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	authority := serverCertificate(t, dir)
	address, stop, err := start(t.Context(), "--oauth", "basic", "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	address = strings.Replace(address, "http://", "https://", 1)
	e := newEntra(t)
	certificate, private := clientCertificate(t)
	e.certificate = certificate
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	roots.AddCert(e.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(client.CloseIdleConnections)
	env := handlertest.Env(t)
	env.Client = client

	key, err := blob.NewSharedKeyCredential(account, accountKey)
	if err != nil {
		t.Fatal(err)
	}
	options := &container.ClientOptions{}
	options.Transport = client
	at, err := container.NewClientWithSharedKeyCredential(address+"/exports", key, options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := at.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}

	principal := azure.Credentials{TenantID: "ab1f708d-50f6-404c-a006-d71b2ac7a606", ClientID: "0b1f708d-50f6-404c-a006-d71b2ac7a606"}
	bySecret, byCertificate, wrong := principal, principal, principal
	bySecret.Type, bySecret.ClientSecret = azure.ClientSecret, destination.NewSecret("right")
	wrong.Type, wrong.ClientSecret = azure.ClientSecret, destination.NewSecret("wrong/canary+0815")
	byCertificate.Type, byCertificate.Certificate = azure.ClientCertificate, destination.NewSecret(private)
	own, err := azidentity.NewClientSecretCredential(principal.TenantID, principal.ClientID, "right", &azidentity.ClientSecretCredentialOptions{
		ClientOptions: clientOptions(client, e.URL), DisableInstanceDiscovery: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		credentials azure.Credentials
		options     []azure.Option
		says        string
	}{
		"secret":                {credentials: bySecret},
		"certificate":           {credentials: byCertificate},
		"the host's":            {credentials: azure.Credentials{Type: azure.Default}, options: []azure.Option{azure.WithCredential(own), azure.WithTrustedEndpoint(address)}},
		"wrong secret":          {credentials: wrong, says: "the client secret is wrong"},
		"the host's, elsewhere": {credentials: azure.Credentials{Type: azure.Default}, options: []azure.Option{azure.WithCredential(own)}, says: "not sent to an endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := azure.New(append(c.options, azure.WithAuthority(e.URL))...)
			if err := h.Open(env); err != nil {
				t.Fatal(err)
			}
			config := config("exports")
			config.Endpoint, config.Credentials = address, c.credentials
			base := handlertest.Request(t, azure.New(), func() azure.Config { c := config; c.Credentials = bySecret; return c }(), payload.Bytes("x", uploads.Random(2*mib)))
			base.Config = config
			_, err := h.Deliver(t.Context(), base)
			if c.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if e := handler.Classify(err); err == nil || e.WillRetry() || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if err != nil && strings.Contains(fmt.Sprintf("%+v", err), "canary") {
				t.Errorf("the secret is in the error: %v", err)
			}
		})
	}
}

func clientCertificate(t *testing.T) (certificate *x509.Certificate, both string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "exports"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate, encodePEM("CERTIFICATE", der) + encodePEM("PRIVATE KEY", private)
}

func serverCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cert.pem": encodePEM("CERTIFICATE", der), "key.pem": encodePEM("PRIVATE KEY", private)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func encodePEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func clientOptions(client *http.Client, authority string) policy.ClientOptions {
	return policy.ClientOptions{Transport: client, Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: authority}}
}
