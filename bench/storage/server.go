package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

const (
	accessKey = "AKIABENCHBENCHBENCHB"
	secretKey = "secret/of+the+benchmark"
	region    = "us-east-1"
)

// server is an S3 server in a process of its own.
type server struct {
	url     string
	cmd     *exec.Cmd
	buckets int
}

func startServer(ctx context.Context, dir string) (*server, error) {
	cmd := command(ctx, job{Kind: "server", Folder: filepath.Join(dir, "server")})
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if s.url = lines.Text(); strings.HasPrefix(s.url, "http://") { // the gateway prints too
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return s, nil
		}
	}
	s.stop()
	return nil, fmt.Errorf("the server has not started: %w", lines.Err())
}

func (s *server) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func client(endpoint string) *awss3.Client {
	return awss3.New(awss3.Options{
		Region: region, BaseEndpoint: aws.String(endpoint), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
	})
}

func (s *server) newBucket(ctx context.Context) (string, error) {
	s.buckets++
	name := fmt.Sprintf("bucket-%d", s.buckets)
	_, err := client(s.url).CreateBucket(ctx, &awss3.CreateBucketInput{Bucket: &name})
	return name, err
}

// drop removes a bucket with all that is in it.
func (s *server) drop(ctx context.Context, bucket string) error {
	c := client(s.url)
	pages := awss3.NewListObjectsV2Paginator(c, &awss3.ListObjectsV2Input{Bucket: &bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, o := range page.Contents {
			if _, err := c.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: &bucket, Key: o.Key}); err != nil {
				return err
			}
		}
	}
	_, err := c.DeleteBucket(ctx, &awss3.DeleteBucketInput{Bucket: &bucket})
	return err
}

// serve runs the gateway until the process is killed, and prints its URL once it listens.
func serve(ctx context.Context, dir string) error {
	for _, d := range []string{"data", "meta"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	side, err := meta.NewSideCar(filepath.Join(dir, "meta")) // attributes of files have too little room for the list of 1,000 parts
	if err != nil {
		return err
	}
	backend, err := posix.New(filepath.Join(dir, "data"), side, posix.PosixOpts{SideCarDir: filepath.Join(dir, "meta"), Concurrency: 100})
	if err != nil {
		return err
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := l.Addr().String()
	_ = l.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
			RootUserAccess: accessKey, RootUserSecret: secretKey, Region: region, Ports: []string{address},
			MaxConnections: 1000, MaxRequests: 1000, MultipartMaxParts: 10000, Quiet: true, KeepAlive: true,
		})
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, http.NoBody)
		if err != nil {
			return err
		}
		if r, err := http.DefaultClient.Do(req); err == nil {
			_ = r.Body.Close()
			fmt.Println("http://" + address)
			return <-ended
		}
		select {
		case err := <-ended:
			return errors.Join(errors.New("the gateway ended"), err)
		case <-tick.C:
		}
	}
}
