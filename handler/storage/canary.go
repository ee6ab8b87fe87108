package storage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// cleanUp is how long the canary may take to be deleted once the test's context has ended.
const cleanUp = 10 * time.Second

// Test writes, reads and deletes a canary where the deliveries of the organization go, and reports
// each step. before holds steps that the driver has already made, such as obtaining credentials.
func (t Target) Test(
	ctx context.Context, req *handler.TestRequest, now time.Time, before ...destination.TestStep,
) *destination.TestReport {
	c := &canary{target: t, report: &destination.TestReport{OK: true, Steps: before}}
	start := time.Now()
	for _, s := range before {
		c.report.OK = c.report.OK && s.OK
		c.report.Latency += s.Latency
	}
	if c.report.OK {
		c.run(ctx, req, now)
	}
	c.report.Latency += destination.Duration(time.Since(start))
	return c.report
}

type canary struct {
	target Target
	report *destination.TestReport
}

func (c *canary) step(ctx context.Context, name string, run func() (string, error)) bool {
	start := time.Now()
	finding, err := run()
	if err != nil {
		finding = ended(ctx, err).Error()
	}
	c.report.OK = c.report.OK && err == nil
	c.report.Steps = append(
		c.report.Steps,
		destination.TestStep{
			Name: name, OK: err == nil, Finding: finding, Latency: destination.Duration(time.Since(start)),
		},
	)
	return err == nil
}

func (c *canary) run(ctx context.Context, req *handler.TestRequest, now time.Time) {
	var up *Upload
	named := c.step(ctx, "name", func() (finding string, err error) {
		if up, err = c.upload(req, now); err != nil {
			return "", err
		}
		return "the canary is " + up.Name, nil
	})
	if !named || !c.step(ctx, "write", func() (string, error) { return "", c.write(ctx, up) }) {
		return
	}
	c.step(ctx, "read", func() (string, error) { return "", c.read(ctx, up) })
	if !up.Replace {
		c.step(ctx, "create only if absent", func() (string, error) { return c.writeAgain(ctx, up) })
	}
	c.step(ctx, "delete", func() (string, error) { return "", c.remove(ctx, up) })
}

func (c *canary) write(ctx context.Context, up *Upload) error {
	stored, err := c.target.Bucket.Put(ctx, up)
	if err != nil {
		return err
	}
	return sized(stored, up)
}

func sized(o Object, up *Upload) error {
	if o.Size != up.Size {
		return fmt.Errorf("storage: %d bytes were written and %d are there", up.Size, o.Size)
	}
	return nil
}

func (c *canary) read(ctx context.Context, up *Upload) error {
	found, err := c.target.Bucket.Stat(ctx, up.Name)
	if err == nil {
		err = sized(found, up)
	}
	if err != nil {
		return err
	}
	sum, _, err := digest(ctx, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return c.target.Bucket.Get(ctx, up.Name, offset)
	})
	if err == nil && sum != up.SHA256 {
		err = errors.New("storage: what is read differs from what was written")
	}
	return err
}

func (c *canary) writeAgain(ctx context.Context, up *Upload) (finding string, err error) {
	_, err = c.target.Bucket.Put(ctx, up)
	switch {
	case errors.Is(err, ErrExists):
		return "a second object of the same name is refused", nil
	case err == nil:
		return "", errors.New("storage: the other side replaces an object although it was told to create it only " +
			"if there is none (If-None-Match); update it, or set if_exists to replace")
	}
	return "", err
}

// remove also runs when the test's context has ended.
func (c *canary) remove(ctx context.Context, up *Upload) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	if err := c.target.Bucket.Delete(ctx, up.Name); err != nil {
		return fmt.Errorf("%w; the object %q of this test stays, remove it by hand", err, up.Name)
	}
	return nil
}

func (c *canary) upload(req *handler.TestRequest, now time.Time) (*Upload, error) {
	text := "This object tests a connection and can be deleted. " + rand.Text() + "\n"
	template, err := c.target.Naming.Template()
	if err != nil {
		return nil, fmt.Errorf("storage: the name's template %w", err)
	}
	sum := sha256.Sum256([]byte(text))
	info := payload.Info{
		Name: "connection-test-" + strings.ToLower(rand.Text()) + ".txt", ContentType: "text/plain; charset=utf-8",
		Size: int64(len(text)), SHA256: hex.EncodeToString(sum[:]),
	}
	content := payload.NewContent(info, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text[offset:])), nil
	})
	id := strings.ToLower(rand.Text())
	sample := &handler.Request{
		DeliveryID: "connection-test-" + id, ItemID: "connection-test-" + id, Organization: req.Organization,
		Payload: content, Topic: "connection-test", CreatedAt: now,
	}
	name, err := template.Name(sample)
	if err != nil {
		return nil, err
	}
	if !template.Unique() {
		name = sibling(name, info.Name) // not over the object of a delivery
	}
	up := c.target.upload(sample, name)
	up.Replace, up.Transient = c.target.Naming.IfExists == Replace, true
	return up, nil
}

// sibling is the name of another object in the same folder.
func sibling(name, file string) string {
	return name[:strings.LastIndexByte(name, '/')+1] + file
}
