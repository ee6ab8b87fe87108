package handler_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

func TestFromHTTP(t *testing.T) {
	t.Parallel()
	for code := range 600 {
		err := handler.FromHTTP(code, nil, nil)
		if code >= 200 && code < 300 {
			if err != nil {
				t.Errorf("%d: %v", code, err)
			}
			continue
		}
		var e *handler.Error
		if !errors.As(err, &e) {
			t.Fatalf("%d: %v", code, err)
		}
		want := map[int]handler.Category{
			401: handler.Authentication, 403: handler.Authentication, 407: handler.Authentication,
			408: handler.Timeout, 504: handler.Timeout, 409: handler.Conflict, 410: handler.Configuration,
			404: handler.Configuration, 405: handler.Configuration, 501: handler.Configuration, 505: handler.Configuration,
			425: handler.RateLimit, 429: handler.RateLimit, 507: handler.Capacity,
		}[code]
		if want == handler.Uncategorized {
			want = map[int]handler.Category{4: handler.Validation, 5: handler.Remote}[code/100]
		}
		if want == handler.Uncategorized {
			want = handler.Configuration
		}
		if e.Category != want || e.StatusCode != code || (e.Verdict == handler.Disable) != (code == 410) || e.Error() == "" {
			t.Errorf("%d: %+v, want %s", code, e, want)
		}
		for _, retryable := range []int{408, 429, 500, 502, 503, 504} {
			if code == retryable && !e.WillRetry() {
				t.Errorf("%d is not retried", code)
			}
		}
	}
	cause := errors.New("cause")
	if err := handler.FromHTTP(500, nil, cause); !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const date = "Sun, 21 Jun 2026 10:00:00 GMT"
	for _, c := range []struct {
		after, date string
		want        time.Duration
	}{
		{"", date, 0},
		{"0", date, 0},
		{" 7 ", date, 7 * time.Second},
		{"-7", date, 0},
		{"1.5", date, 0},
		{"99999999999", "", 9223372036 * time.Second},
		{"99999999999999999999", "", 0},
		{"Sun, 21 Jun 2026 11:00:00 GMT", date, time.Hour},
		{"Sunday, 21-Jun-26 11:00:00 GMT", date, time.Hour}, // RFC 850, which is still to be read
		{"Sun Jun 21 11:00:00 2026", date, time.Hour},       // asctime
		{"Sun, 21 Jun 2026 09:00:00 GMT", date, 0},
		{time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), "", 0},
		{"tomorrow", date, 0},
	} {
		header := http.Header{"Retry-After": {c.after}, "Date": {c.date}}
		if e := handler.Classify(handler.FromHTTP(503, header, nil)); e.RetryAfter != c.want {
			t.Errorf("%q at %q: %s, want %s", c.after, c.date, e.RetryAfter, c.want)
		}
	}
	soon := http.Header{"Retry-After": {time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)}}
	if e := handler.Classify(handler.FromHTTP(503, soon, nil)); e.RetryAfter < 50*time.Minute || e.RetryAfter > time.Hour {
		t.Errorf("without a Date: %s", e.RetryAfter)
	}
}

type permanent bool

func (permanent) Error() string     { return "forbidden" }
func (p permanent) Permanent() bool { return bool(p) }

type timeout struct{ error }

func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

func TestClassify(t *testing.T) {
	t.Parallel()
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for name, c := range map[string]struct {
		err  error
		want handler.Category
	}{
		"plain":           {errors.New("x"), handler.Uncategorized},
		"deadline":        {context.DeadlineExceeded, handler.Timeout},
		"os deadline":     {os.ErrDeadlineExceeded, handler.Timeout},
		"network timeout": {dial(timeout{errors.New("slow")}), handler.Timeout},
		"refused":         {dial(syscall.ECONNREFUSED), handler.Network},
		"reset":           {syscall.ECONNRESET, handler.Network},
		"pipe":            {syscall.EPIPE, handler.Network},
		"closed":          {net.ErrClosed, handler.Network},
		"end":             {io.EOF, handler.Network},
		"early end":       {io.ErrUnexpectedEOF, handler.Network},
		"unknown host":    {&net.DNSError{IsNotFound: true}, handler.Network},
		"slow resolver":   {&net.DNSError{IsTimeout: true}, handler.Network},
		"certificate":     {&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, handler.Network},
		"no TLS":          {tls.RecordHeaderError{}, handler.Network},
		"disk full":       {&fs.PathError{Err: syscall.ENOSPC}, handler.Capacity},
		"quota":           {syscall.EDQUOT, handler.Capacity},
		"not permitted":   {fs.ErrPermission, handler.Authentication},
		"too large":       {payload.ErrTooLarge, handler.Validation},
		"corrupt":         {payload.ErrCorrupt, handler.Internal},
		"forbidden":       {dial(permanent(true)), handler.Configuration},
		"not forbidden":   {dial(permanent(false)), handler.Network},
		"failed":          {handler.Fail(handler.Conflict, io.EOF), handler.Conflict},
		"permanent":       {handler.Permanent(io.EOF), handler.Network},
		"gone":            {handler.Gone(io.EOF), handler.Configuration},
		"rate":            {handler.RateLimited(time.Second, io.EOF), handler.RateLimit},
	} {
		for _, err := range []error{c.err, fmt.Errorf("wrapped: %w", c.err), errors.Join(errors.New("other"), c.err)} {
			e := handler.Classify(err)
			if e.Category != c.want || e.Error() != err.Error() && !errors.Is(e, c.err) {
				t.Errorf("%s: %s, want %s: %v", name, e.Category, c.want, e)
			}
		}
	}
	if handler.Classify(nil) != nil {
		t.Error("nil")
	}
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	plain := errors.New("x")
	for name, c := range map[string]struct {
		err   error
		retry bool
	}{
		"plain":                  {plain, true},
		"permanent":              {handler.Permanent(plain), false},
		"permanent refused":      {handler.Permanent(syscall.ECONNREFUSED), false},
		"transient":              {handler.Transient(plain), true},
		"transient conflict":     {handler.Transient(handler.Fail(handler.Conflict, plain)), true},
		"permanent, rate limit":  {handler.Permanent(handler.RateLimited(time.Second, plain)), false},
		"gone":                   {handler.Gone(plain), false},
		"rate limited":           {handler.RateLimited(time.Second, plain), true},
		"wrapped permanent":      {fmt.Errorf("w: %w", handler.Permanent(plain)), false},
		"configuration":          {handler.Fail(handler.Configuration, plain), false},
		"a category of tomorrow": {handler.Fail(handler.Category(99), plain), true},
	} {
		e := handler.Classify(c.err)
		if e.WillRetry() != c.retry || !errors.Is(e, plain) && name != "permanent refused" {
			t.Errorf("%s: retry %t, want %t: %+v", name, e.WillRetry(), c.retry, e)
		}
	}
	if (&handler.Error{Category: handler.Remote}).Error() != "remote failure" {
		t.Error("an Error without cause has no words")
	}
}

// Stored numbers and names never change.
func TestCategoryNames(t *testing.T) {
	t.Parallel()
	for i, want := range []string{"uncategorized", "configuration", "authentication", "validation", "conflict", "network", "timeout",
		"rate limit", "remote", "capacity", "internal", "unknown(11)"} {
		c := handler.Category(i)
		if text, err := c.MarshalText(); err != nil || string(text) != want {
			t.Errorf("%d: %s, %v", i, text, err)
		}
		if c.Permanent() != (i >= 1 && i <= 4) {
			t.Errorf("%s: permanent %t", c, c.Permanent())
		}
	}
	if handler.Category(-1).String() != "unknown(-1)" {
		t.Error("-1")
	}
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err   error
		want  handler.Category
		retry bool
	}{
		"store away": {errors.New("x"), handler.Internal, true},
		"network":    {syscall.ECONNREFUSED, handler.Internal, true},
		"corrupt":    {payload.ErrCorrupt, handler.Internal, true},
		"gone":       {&fs.PathError{Err: fs.ErrNotExist}, handler.Internal, false},
		"too large":  {payload.ErrTooLarge, handler.Validation, false},
		"classified": {handler.Fail(handler.Conflict, io.EOF), handler.Conflict, false},
	} {
		e := handler.Classify(handler.Unreadable(c.err))
		if e.Category != c.want || e.WillRetry() != c.retry || !errors.Is(e, c.err) && name != "classified" {
			t.Errorf("%s: %+v", name, e)
		}
	}
	for _, err := range []error{nil, context.Canceled, context.DeadlineExceeded, handler.ErrShutdown, handler.ErrLeaseLost} {
		if got := handler.Unreadable(err); got != err { //nolint:errorlint // the very same
			t.Errorf("%v becomes %v", err, got)
		}
	}
}

// A retry policy can name every category.
func TestPoliciesNameCategories(t *testing.T) {
	t.Parallel()
	for c := handler.Uncategorized; c <= handler.Internal; c++ {
		if err := (retry.Policy{RetryOn: []string{c.String()}}).Validate(); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
}
