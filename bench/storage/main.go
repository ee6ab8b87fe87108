// Command storage measures deliveries to S3 and to local folders: throughput and memory with a
// large file beside the SDK's transfer manager, what a killed upload sends again, and many small
// objects beside a loop over the SDK. Every measurement runs in a process of its own, and so does
// the S3 server (versitygw), whose memory does not count. Only the ratios of one run mean
// something.
//
//	go run ./storage [-case name] [-size MiB] [-resume MiB] [-objects n] [-concurrency n] [-away time] [-rounds n] [-dir folder]
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	if text := os.Getenv(jobVariable); text != "" {
		if err := work(context.Background(), text); err != nil {
			fmt.Fprintln(os.Stderr, "storage:", err)
			os.Exit(1)
		}
		return
	}
	var b bench
	size := flag.Int64("size", 5<<10, "size of the large file, in MiB")
	resume := flag.Int64("resume", 2<<10, "size of the file whose upload is killed, in MiB")
	flag.IntVar(&b.objects, "objects", 10_000, "small objects")
	flag.IntVar(&b.concurrency, "concurrency", 48, "small objects under way at a time; 48 are what a service gives a destination by default")
	flag.DurationVar(&b.away, "away", 30*time.Millisecond, "the time that each small object takes longer in the second case of them")
	flag.IntVar(&b.rounds, "rounds", 3, "times that each contender runs; the median counts")
	flag.StringVar(&b.only, "case", "", "the cases whose name contains this, alone")
	flag.StringVar(&b.profile, "cpuprofile", "", "a file for a profile of the last measured process of delivery")
	parent := flag.String("dir", "", "where files are written, about four times size (the system's temporary folder)")
	flag.Parse()
	b.size, b.resume = *size<<20, *resume<<20
	if err := b.run(context.Background(), *parent); err != nil {
		fmt.Fprintln(os.Stderr, "storage:", err)
		os.Exit(1)
	}
}

type bench struct {
	size, resume                 int64
	objects, concurrency, rounds int
	away                         time.Duration
	only, profile                string

	dir, file string
	server    *server
}

type contender struct {
	name string
	job  job
}

type contest struct {
	name       string
	contenders []contender
	unit       string
	amount     float64 // in that unit
}

func (b *bench) run(ctx context.Context, parent string) (err error) {
	if b.dir, err = os.MkdirTemp(parent, "delivery-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.server, err = startServer(ctx, b.dir); err != nil {
		return err
	}
	defer b.server.stop()
	fmt.Printf("%s, %s, %d cores, versitygw in a process of its own, SQLite; median of %d\n\n",
		time.Now().UTC().Format(time.DateOnly), runtime.Version(), runtime.NumCPU(), b.rounds)

	b.file = filepath.Join(b.dir, "file.bin")
	s3 := job{Endpoint: b.server.url, File: b.file, Concurrency: 4}
	local := job{Folder: filepath.Join(b.dir, "out"), File: b.file, Concurrency: 4}
	small := job{Endpoint: b.server.url, Objects: b.objects, Concurrency: b.concurrency}
	far := small
	far.Away = b.away
	mib := float64(b.size >> 20)
	large := fmt.Sprintf("%d MiB", b.size>>20)
	fmt.Printf("| %-30s | %-28s | %12s | %6s | %14s | %12s |\n|%s|%s|%s:|%s:|%s:|%s:|\n", "case", "", "per second", "ratio", "accepted after",
		"memory grows", dashes(32), dashes(30), dashes(13), dashes(7), dashes(15), dashes(13))
	for _, c := range []contest{
		{name: "s3, " + large, unit: "MiB", amount: mib, contenders: []contender{
			{"SDK's transfer manager", s3.of("sdk")}, {"delivery, payload.Ref", s3.of("ref")}, {"delivery, payload.Reader", s3.of("reader")},
		}},
		{name: "local, " + large, unit: "MiB", amount: mib, contenders: []contender{
			{"io.Copy, SHA-256, Sync", local.of("copy")}, {"delivery, payload.Ref", local.of("ref")},
		}},
		{name: "local once accepted, " + large, unit: "MiB", amount: mib, contenders: []contender{
			{"io.Copy, SHA-256, Sync", local.of("recopy")}, {"delivery, payload.Reader", local.of("reader")},
		}},
		{name: fmt.Sprintf("s3, %d objects", b.objects), unit: "objects", amount: float64(b.objects), contenders: []contender{
			{"loop over the SDK", small.of("loop")}, {"driver without a queue", small.of("driver")}, {"delivery", small.of("many")},
			{"delivery that does nothing", small.of("noop")},
		}},
		{name: fmt.Sprintf("s3 %v away, %d objects", b.away, b.objects), unit: "objects", amount: float64(b.objects), contenders: []contender{
			{"loop over the SDK", far.of("loop")}, {"delivery", far.of("many")}, {"delivery that does nothing", far.of("noop")},
		}},
	} {
		if !strings.Contains(c.name, b.only) {
			continue
		}
		if c.unit == "MiB" {
			if err := b.generate(b.size); err != nil {
				return err
			}
		}
		if err := b.hold(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if name := "killed"; strings.Contains(name, b.only) {
		if err := b.generate(b.resume); err != nil {
			return err
		}
		return b.kill(ctx)
	}
	return nil
}

func dashes(n int) string { return strings.Repeat("-", n) }

// hold runs the contenders by turns, and prints the median of each.
func (b *bench) hold(ctx context.Context, c contest) error {
	all := make([][]outcome, len(c.contenders))
	for range b.rounds {
		for i, contender := range c.contenders {
			o, err := b.measure(ctx, contender.job)
			if err != nil {
				return fmt.Errorf("%s: %w", contender.name, err)
			}
			all[i] = append(all[i], o)
		}
	}
	for i, contender := range c.contenders {
		var seconds, accepted, ratios []float64
		most := 0
		for round, o := range all[i] {
			seconds, accepted = append(seconds, o.Seconds), append(accepted, o.Accepted)
			ratios = append(ratios, all[0][round].Seconds/o.Seconds) // in the same minutes: what else the machine does changes
			most = max(most, o.GrownKiB)
		}
		after := ""
		if s := median(accepted); s > 0 {
			after = fmt.Sprintf("%.1f s", s)
		}
		fmt.Printf("| %-30s | %-28s | %12s | %6.2f | %14s | %12s |\n", c.name, contender.name,
			fmt.Sprintf("%.0f %s", c.amount/median(seconds), c.unit), median(ratios), after, fmt.Sprintf("%d MiB", most>>10))
	}
	return nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// measure runs a job in a process of its own, in a bucket and with a database of its own, and
// removes what it wrote.
func (b *bench) measure(ctx context.Context, j job) (o outcome, err error) {
	if j.Database, err = os.MkdirTemp(b.dir, "db-"); err != nil {
		return o, err
	}
	defer os.RemoveAll(j.Database)
	if j.Folder != "" {
		defer os.RemoveAll(j.Folder)
	}
	if j.Endpoint != "" {
		if j.Bucket, err = b.server.newBucket(ctx); err != nil {
			return o, err
		}
		defer func() { err = errors.Join(err, b.server.drop(ctx, j.Bucket)) }()
	}
	if !slices.Contains([]string{"sdk", "loop", "copy", "recopy"}, j.Kind) {
		j.Profile = b.profile
	}
	_ = exec.CommandContext(ctx, "sync").Run() // what an earlier process wrote is not to be written at this one's cost
	out, err := command(ctx, j).Output()
	if err != nil {
		return o, failure(err)
	}
	if err := json.Unmarshal(out, &o); err != nil {
		return o, fmt.Errorf("%q: %w", out, err)
	}
	return o, nil
}

func failure(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return err
}

// command is this program as a process that does a job.
func command(ctx context.Context, j job) *exec.Cmd {
	text, err := json.Marshal(j)
	if err != nil {
		panic(err) // it is of plain fields
	}
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	return cmd
}

// generate makes the file of a size: of bytes that nothing can compress, the same each time.
func (b *bench) generate(size int64) error {
	if info, err := os.Stat(b.file); err == nil && info.Size() == size {
		return nil
	}
	f, err := os.Create(b.file)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8(sha256.Sum256([]byte("storage"))), size)
	return errors.Join(err, f.Close())
}
