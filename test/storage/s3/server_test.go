package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/storage/s3"
)

const (
	accessKey = "AKIATESTTESTTESTTEST"
	secretKey = "secret/canary+4711+for+the+gateway"
)

// gateway is the URL of the one server of this process.
var gateway string

func TestMain(m *testing.M) {
	if text := os.Getenv(orderVariable); text != "" {
		os.Exit(uploadInProcess(text))
	}
	os.Exit(run(m))
}

// run starts the gateway, which changes the working directory of the process, and stops it after the tests.
func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "versitygw-*")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"/data", "/meta", "/versions"} {
		if err := os.Mkdir(dir+d, 0o700); err != nil {
			panic(err)
		}
	}
	side, err := meta.NewSideCar(dir + "/meta")
	if err != nil {
		panic(err)
	}
	backend, err := posix.New(dir+"/data", side, posix.PosixOpts{VersioningDir: dir + "/versions", SideCarDir: dir + "/meta", Concurrency: 100})
	if err != nil {
		panic(err)
	}
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	gateway = "http://" + address

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
			RootUserAccess: accessKey, RootUserSecret: secretKey, Region: "us-east-1", Ports: []string{address},
			MaxConnections: 1000, MaxRequests: 1000, MultipartMaxParts: 10000, Quiet: true, KeepAlive: true,
		})
	}()
	defer func() {
		cancel()
		<-done
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var dialer net.Dialer
		if c, err := dialer.DialContext(ctx, "tcp", address); err == nil {
			_ = c.Close()
			return m.Run()
		}
		select {
		case err := <-done:
			panic(fmt.Sprint("the gateway ended: ", err))
		case <-tick.C:
		}
	}
}

func admin() *awss3.Client {
	return awss3.New(awss3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(gateway), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
	})
}

var buckets atomic.Int32

// newBucket makes a bucket of its own.
func newBucket(t testing.TB, lock bool) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", buckets.Add(1))
	if _, err := admin().CreateBucket(t.Context(), &awss3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(lock)}); err != nil {
		t.Fatal(err)
	}
	return name
}

func config(bucket string) s3.Config {
	return s3.Config{
		Bucket: bucket, Endpoint: gateway, PathStyle: true,
		Credentials: s3.Credentials{AccessKeyID: accessKey, SecretAccessKey: destination.NewSecret(secretKey)},
	}
}

// object reads an object, nil if it is not there.
func object(t testing.TB, bucket, name string) []byte {
	t.Helper()
	out, err := admin().GetObject(context.Background(), &awss3.GetObjectInput{Bucket: &bucket, Key: &name})
	var missing *types.NoSuchKey
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func objects(t testing.TB, bucket string) []string {
	t.Helper()
	out, err := admin().ListObjectsV2(context.Background(), &awss3.ListObjectsV2Input{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range out.Contents {
		names = append(names, aws.ToString(o.Key))
	}
	return names
}

func uploads(t testing.TB, bucket string) int {
	t.Helper()
	out, err := admin().ListMultipartUploads(context.Background(), &awss3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	return len(out.Uploads)
}

// front stands before the gateway, counts what comes by operation, and can refuse.
type front struct {
	*httptest.Server
	mu     sync.Mutex
	counts map[string]int
	bytes  map[string]int64
	refuse func(operation string, n int, w http.ResponseWriter) bool
}

func newFront(t testing.TB) *front {
	t.Helper()
	f := &front{counts: map[string]int{}, bytes: map[string]int64{}}
	target, err := url.Parse(gateway)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		operation := operationOf(r)
		f.mu.Lock()
		f.counts[operation]++
		n, refuse := f.counts[operation], f.refuse
		if r.ContentLength > 0 {
			f.bytes[operation] += r.ContentLength
		}
		f.mu.Unlock()
		if refuse != nil {
			body, err := io.ReadAll(r.Body) // an answer before it is read would cut the connection
			if err != nil {
				return
			}
			if refuse(operation, n, w) {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func operationOf(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPut && q.Has("partNumber"):
		return "UploadPart"
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "Create"
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "Complete"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "Abort"
	case r.Method == http.MethodGet && q.Has("uploadId"):
		return "ListParts"
	}
	return strings.ToUpper(r.Method)
}

func (f *front) count(operation string) (n int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[operation], f.bytes[operation]
}

func (f *front) reset(refuse func(operation string, n int, w http.ResponseWriter) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.counts)
	clear(f.bytes)
	f.refuse = refuse
}
