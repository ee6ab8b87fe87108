package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	_ "modernc.org/sqlite"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/local"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload"
)

const jobVariable = "DELIVERY_BENCH_STORAGE_JOB"

// job is what one process does. Kind is server, or of a contender:
//
//   - sdk: the file by the SDK's transfer manager
//   - copy: the file by io.Copy with its SHA-256, and Sync, for local
//   - recopy: the same, of a copy of the file that was made just before, as what is accepted is
//   - ref: the file by a delivery of a payload.Ref
//   - reader: the file by a delivery of a payload.Reader, which is accepted first, into a directory
//   - resume: as ref, where an earlier process has accepted it
//   - loop: small objects by the SDK
//   - driver: small objects by the driver, without a queue
//   - many: small objects by deliveries
//   - noop: small payloads by deliveries to a handler that does nothing
type job struct {
	Kind             string
	Endpoint, Bucket string
	Folder, File     string
	Database         string // a folder
	Objects          int
	Concurrency      int           // small objects under way at a time
	Away             time.Duration // that each of them takes longer
	Profile          string
}

func (j job) of(kind string) job {
	j.Kind = kind
	return j
}

// outcome is what a process prints.
type outcome struct {
	Seconds  float64 // that the attempts took
	Accepted float64 // seconds until a payload that is streamed was accepted
	GrownKiB int     // by which the resident memory was larger at most than before
}

const smallSize = 4 << 10

func work(ctx context.Context, text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	if j.Kind == "server" {
		return serve(ctx, j.Folder)
	}
	measured := map[string]func(context.Context, job) (outcome, error){"sdk": transfer, "copy": copyFile, "recopy": recopyFile, "loop": loop, "driver": driver}[j.Kind]
	if measured == nil {
		measured = ours
	}
	if j.Profile != "" {
		f, err := os.Create(j.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	o, err := measured(ctx, j)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// timed measures f, and by how much memory grows with it.
func timed(f func() error) (outcome, error) {
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // VmHWM begins anew, proc(5)
	before := memory("VmRSS")
	start := time.Now()
	err := f()
	return outcome{Seconds: time.Since(start).Seconds(), GrownKiB: memory("VmHWM") - before}, err
}

// memory is a field of this process's status, in KiB; 0 where /proc does not tell.
func memory(field string) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), field+":")
	kib, _ := strconv.Atoi(strings.Fields(after)[0])
	return kib
}

func transfer(ctx context.Context, j job) (outcome, error) {
	m := transfermanager.New(client(j.Endpoint))
	f, err := os.Open(j.File)
	if err != nil {
		return outcome{}, err
	}
	defer f.Close()
	return timed(func() error {
		_, err := m.UploadObject(ctx, &transfermanager.UploadObjectInput{Bucket: &j.Bucket, Key: aws.String("file.bin"), Body: f})
		return err
	})
}

func copyFile(_ context.Context, j job) (outcome, error) {
	if err := os.MkdirAll(j.Folder, 0o700); err != nil {
		return outcome{}, err
	}
	return timed(func() error { return copyTo(filepath.Join(j.Folder, "file.bin"), j.File) })
}

func recopyFile(ctx context.Context, j job) (outcome, error) {
	accepted := filepath.Join(j.Database, "file.bin")
	if err := copyTo(accepted, j.File); err != nil {
		return outcome{}, err
	}
	j.File = accepted
	return copyFile(ctx, j)
}

func copyTo(target, source string) error {
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(target)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(to, sum), from)
	return errors.Join(err, to.Sync(), to.Close())
}

func smallBody(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%08d", i)), smallSize/8) }

// loop stores what deliveries store: with the same headers, and only if it is absent.
func loop(ctx context.Context, j job) (outcome, error) {
	c := client(j.Endpoint)
	return j.each(ctx, func(ctx context.Context, i int, body []byte) error {
		sum := sha256.Sum256(body)
		_, err := c.PutObject(ctx, &awss3.PutObjectInput{
			Bucket: &j.Bucket, Key: aws.String(strconv.Itoa(i)), Body: bytes.NewReader(body), IfNoneMatch: aws.String("*"),
			ContentType: aws.String("application/octet-stream"), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
			Metadata: map[string]string{storage.MetadataItem: strconv.Itoa(i), storage.MetadataSHA256: hex.EncodeToString(sum[:])},
		})
		return err
	})
}

func driver(ctx context.Context, j job) (outcome, error) {
	h := s3.New()
	var dialer net.Dialer
	transport := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 64}
	if err := h.Open(handler.Env{Client: &http.Client{Transport: transport}, Dial: dialer.DialContext}); err != nil {
		return outcome{}, err
	}
	b, err := h.Bucket(ctx, "acme", j.config())
	if err != nil {
		return outcome{}, err
	}
	return j.each(ctx, func(ctx context.Context, i int, body []byte) error {
		sum := sha256.Sum256(body)
		_, err := b.Put(ctx, &storage.Upload{
			Name: strconv.Itoa(i), Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:]), Item: strconv.Itoa(i),
			ContentType: "application/octet-stream", Progress: func(int64) {},
			Open: func(context.Context, int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
		})
		return err
	})
}

// each stores the small objects, so many at a time.
func (j job) each(ctx context.Context, store func(ctx context.Context, i int, body []byte) error) (outcome, error) {
	return timed(func() error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(j.Concurrency)
		for i := range j.Objects {
			group.Go(func() error {
				j.travel()
				return store(ctx, i, smallBody(i))
			})
		}
		return group.Wait()
	})
}

// travel takes the time that a request would to a server that is farther away.
func (j job) travel() { <-time.After(j.Away) }

// distant is a handler whose other side is farther away.
type distant struct {
	*s3.Handler
	job job
}

func (d distant) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	d.job.travel()
	if d.job.Kind == "noop" {
		return &handler.Result{}, nil
	}
	return d.Handler.Deliver(ctx, req)
}

func (j job) config() s3.Config {
	return s3.Config{
		Bucket: j.Bucket, Endpoint: j.Endpoint, PathStyle: true, Naming: storage.Naming{Name: "{item}"},
		Credentials: s3.Credentials{AccessKeyID: accessKey, SecretAccessKey: destination.NewSecret(secretKey)},
	}
}

// workers are so many that one destination has Concurrency attempts under way: three quarters of
// all, which is what a service gives a single one.
func (j job) workers() int { return j.Concurrency + (j.Concurrency+2)/3 }

// files opens what a payload.Ref names.
type files struct{}

func (files) Open(_ context.Context, _, ref string) (*payload.Content, error) {
	info, err := os.Stat(ref)
	if err != nil {
		return nil, err
	}
	return payload.NewContent(payload.Info{Name: info.Name(), Size: info.Size()}, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		f, err := os.Open(ref)
		if err != nil {
			return nil, err
		}
		_, err = f.Seek(offset, io.SeekStart)
		return f, err
	}), nil
}

// ours is a service with its database, as a host runs it.
func ours(ctx context.Context, j job) (outcome, error) {
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(filepath.Join(j.Database, "bench.db"))+
		"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)")
	if err != nil {
		return outcome{}, err
	}
	defer db.Close()
	if err := os.MkdirAll(filepath.Join(j.Database, "payloads"), 0o700); err != nil {
		return outcome{}, err
	}
	store, err := local.PayloadStore(filepath.Join(j.Database, "payloads"))
	if err != nil {
		return outcome{}, err
	}
	options := []delivery.Option{
		delivery.WithWorkers(j.workers()), delivery.WithLogger(slog.New(slog.DiscardHandler)),
		delivery.WithKeys(delivery.LocalKey("k", strings.Repeat("ab", 32))), delivery.WithNetwork(delivery.Network{Loopback: true}),
		delivery.WithSource("files", files{}), delivery.WithPayloadStore(store), delivery.WithHandler("s3", distant{s3.New(), j}),
	}
	var config destination.Config = j.config()
	if j.Folder != "" {
		if err := os.MkdirAll(j.Folder, 0o700); err != nil {
			return outcome{}, err
		}
		options = append(options, delivery.WithHandler("local", local.New(j.Folder)))
		config = local.Config{Naming: storage.Naming{Name: "{item}"}}
	}
	svc, err := delivery.New(db, options...)
	if err != nil {
		return outcome{}, err
	}
	defer svc.Close()
	if err := svc.Migrate(ctx); err != nil {
		return outcome{}, err
	}
	acme := svc.Org("acme")
	if j.Kind == "resume" {
		return timed(func() error { return process(ctx, svc, 1) })
	}
	if _, err := acme.Destinations().Create(ctx, destination.Spec{
		Label: "bench", Default: true, Config: config, Limits: destination.Limits{Timeout: destination.Hours(1)},
	}); err != nil {
		return outcome{}, err
	}
	if j.Kind == "many" || j.Kind == "noop" {
		return many(ctx, j, svc, acme)
	}
	var accepted time.Duration
	o, err := timed(func() error {
		p := payload.Ref("files", j.File)
		if j.Kind == "reader" {
			f, err := os.Open(j.File)
			if err != nil {
				return err
			}
			defer f.Close()
			p = payload.Reader("file.bin", f)
		}
		start := time.Now()
		if _, err := acme.Deliver(ctx, delivery.Request{Payload: p}); err != nil {
			return err
		}
		accepted = time.Since(start)
		return process(ctx, svc, 1)
	})
	o.Seconds -= accepted.Seconds()
	if j.Kind == "reader" {
		o.Accepted = accepted.Seconds()
	}
	return o, err
}

func many(ctx context.Context, j job, svc *delivery.DeliveryService, acme *delivery.Org) (outcome, error) {
	for i := 0; i < j.Objects; {
		var requests []delivery.Request
		for range min(1000, j.Objects-i) {
			requests = append(requests, delivery.Request{Payload: payload.Bytes("small.bin", smallBody(i))})
			i++
		}
		if _, err := acme.DeliverMany(ctx, requests); err != nil {
			return outcome{}, err
		}
	}
	return timed(func() error { return process(ctx, svc, j.Objects) })
}

// process makes passes until n items are delivered.
func process(ctx context.Context, svc *delivery.DeliveryService, n int) error {
	for n > 0 {
		pass, err := svc.ProcessDue(ctx)
		if err != nil {
			return err
		}
		n -= pass.Delivered
		if n == 0 {
			break
		}
		if pass.Dead > 0 || pass.Next.IsZero() {
			return fmt.Errorf("%d items are left: %+v", n, pass)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(pass.Next)):
		}
	}
	return nil
}
