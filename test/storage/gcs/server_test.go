package gcs_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fsouza/fake-gcs-server/fakestorage"
	"github.com/golang-jwt/jwt/v5"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/gcs"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

const (
	mib        = 1 << 20
	unit       = 256 << 10
	rightToken = "token/canary+4711"
	email      = "exports@acme.iam.gserviceaccount.com"
)

var (
	fake    *fakestorage.Server
	server  *httptest.Server
	tokens  *httptest.Server
	private *rsa.PrivateKey
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if private, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		panic(err)
	}
	if fake, err = fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, PublicHost: "storage.example.com"}); err != nil {
		panic(err)
	}
	defer fake.Stop()
	server = httptest.NewServer(&gate{sessions: map[string]*received{}})
	defer server.Close()
	tokens = httptest.NewServer(http.HandlerFunc(issue))
	defer tokens.Close()
	return m.Run()
}

// issue gives a token for an assertion that the right key has signed.
func issue(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	w.Header().Set("Content-Type", "application/json")
	_, err := jwt.Parse(r.Form.Get("assertion"), func(*jwt.Token) (any, error) { return &private.PublicKey, nil })
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
		return
	}
	_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, rightToken)
}

func pemOf(key *rsa.PrivateKey) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func keyFile(key *rsa.PrivateKey) string {
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "acme", "private_key_id": "1", "private_key": pemOf(key), "client_email": email,
		"client_id": "1", "token_uri": tokens.URL + "/token",
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// gate stands before the fake: it wants the token, and does resumable uploads as
// https://docs.cloud.google.com/storage/docs/performing-resumable-uploads describes them. The fake
// completes an upload when it is asked how far it got.
type gate struct {
	mu       sync.Mutex
	sessions map[string]*received
}

type received struct {
	mu     sync.Mutex
	data   []byte
	gone   bool
	answer []byte // once it is complete
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+rightToken {
		_, _ = io.Copy(io.Discard, r.Body)
		fail(w, 401, "authError", "Invalid Credentials")
		return
	}
	id := r.URL.Query().Get("upload_id")
	if id == "" {
		fake.HTTPHandler().ServeHTTP(w, r)
		if u, err := url.Parse(w.Header().Get("Location")); err == nil && u.Query().Has("upload_id") {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.sessions[u.Query().Get("upload_id")] = &received{}
		}
		return
	}
	g.mu.Lock()
	s := g.sessions[id]
	g.mu.Unlock()
	if s == nil {
		s = &received{gone: true}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		_, _ = io.Copy(io.Discard, r.Body)
		fail(w, 404, "notFound", "Not Found")
	case r.Method == http.MethodDelete:
		s.gone, s.data = true, nil
		w.WriteHeader(499)
	case s.answer != nil:
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(s.answer)
	default:
		s.take(w, r)
	}
}

func (s *received) take(w http.ResponseWriter, r *http.Request) {
	body, readErr := io.ReadAll(r.Body)
	span, total, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), "/")
	if span != "*" {
		from, _, _ := strings.Cut(span, "-")
		first, err := strconv.Atoi(from)
		if err != nil || first > len(s.data) {
			fail(w, 400, "invalid", "Content-Range is beyond what is there")
			return
		}
		body = body[min(len(body), len(s.data)-first):]
		if total == "*" || readErr != nil {
			body = body[:len(body)/unit*unit]
		}
		s.data = append(s.data, body...)
	}
	if readErr != nil {
		return // the connection is cut
	}
	if size, err := strconv.Atoi(total); err == nil && size == len(s.data) {
		s.finish(w, r)
		return
	}
	if len(s.data) > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(s.data)-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

func (s *received) finish(w http.ResponseWriter, r *http.Request) {
	sum := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.Checksum(s.data, crc32.MakeTable(crc32.Castagnoli))))
	if hash := r.Header.Get("X-Goog-Hash"); hash != "" && hash != "crc32c="+sum {
		fail(w, 400, "invalid", "Provided CRC32C hash does not match calculated hash "+sum)
		return
	}
	whole := httptest.NewRequest(http.MethodPut, r.URL.String(), bytes.NewReader(s.data))
	whole.Host = r.Host
	whole.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(s.data)-1, len(s.data)))
	out := httptest.NewRecorder()
	fake.HTTPHandler().ServeHTTP(out, whole)
	if out.Code < 300 {
		s.answer, s.data = out.Body.Bytes(), nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(out.Code)
	_, _ = w.Write(out.Body.Bytes())
}

// fail answers as the service does.
func fail(w http.ResponseWriter, status int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": status, "message": message, "errors": []any{map[string]string{"reason": reason, "message": message, "domain": "global"}},
	}})
}

var buckets atomic.Int32

// newBucket makes a bucket of its own.
func newBucket(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", buckets.Add(1))
	fake.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: name})
	return name
}

func config(bucket string) gcs.Config {
	return gcs.Config{
		Bucket: bucket, Endpoint: server.URL, ChunkSize: mib, Naming: storage.Naming{Name: "{item}"},
		Credentials: gcs.Credentials{ServiceAccount: destination.NewSecret(keyFile(private))},
	}
}

// object reads an object, nil if it is not there.
func object(bucket, name string) []byte {
	o, err := fake.GetObject(bucket, name)
	if err != nil {
		return nil
	}
	return append([]byte{}, o.Content...)
}

func newFront(t testing.TB) *uploads.Front {
	t.Helper()
	return uploads.NewFront(t, server.URL, operationOf)
}

func operationOf(r *http.Request) string {
	switch q := r.URL.Query(); {
	case r.Method == http.MethodPost && q.Get("uploadType") == "resumable":
		return "Start"
	case q.Has("upload_id") && r.Method == http.MethodPut && strings.HasPrefix(r.Header.Get("Content-Range"), "bytes */"):
		return "Query"
	case q.Has("upload_id") && r.Method == http.MethodPut:
		return "Chunk"
	}
	return r.Method
}

func throughFront(f *uploads.Front, bucket string) gcs.Config {
	c := config(bucket)
	c.Endpoint = f.URL
	return c
}
