package s3_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
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
	"github.com/deliverykit/delivery/test/internal/uploads"
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

// run starts the gateway, which changes the working directory of the process, and stops it after
// the tests.
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

func unfinished(t testing.TB, bucket string) int {
	t.Helper()
	out, err := admin().ListMultipartUploads(context.Background(), &awss3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	return len(out.Uploads)
}

func newFront(t testing.TB) *uploads.Front {
	t.Helper()
	return uploads.NewFront(t, gateway, operationOf)
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
