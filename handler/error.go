package handler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/deliverykit/delivery/payload"
)

// ErrLeaseLost is returned by Request.Checkpoint, and is the cause of the attempt's context, when
// the item now belongs to another worker. The result of this attempt no longer has any effect.
var ErrLeaseLost = errors.New("handler: the lease of this item was lost")

// ErrShutdown is the cause of the attempt's context when the process stops before the attempt has
// ended. The attempt is not counted, and the item is attempted again elsewhere.
var ErrShutdown = errors.New("handler: the process is shutting down")

// Category is the kind of failure of an attempt, which decides whether another attempt makes sense.
// The numbers are stored and never change.
type Category int16

// The categories and what each means for another attempt.
const (
	Uncategorized  Category = 0  // transient, for want of a classification
	Configuration  Category = 1  // permanent: the destination's config cannot work
	Authentication Category = 2  // permanent: credentials refused
	Validation     Category = 3  // permanent: the other side refuses this payload
	Conflict       Category = 4  // permanent: the other side has something else under this name
	Network        Category = 5  // transient: no connection, or it broke
	Timeout        Category = 6  // transient
	RateLimit      Category = 7  // transient, after RetryAfter
	Remote         Category = 8  // transient: the other side failed
	Capacity       Category = 9  // transient: the other side, or the disk, is full
	Internal       Category = 10 // transient: a fault on our side; never held against the destination
)

// Permanent reports whether failures of this category are not tried again by default.
func (c Category) Permanent() bool { return c >= Configuration && c <= Conflict }

func (c Category) String() string {
	names := [...]string{"uncategorized", "configuration", "authentication", "validation", "conflict", "network",
		"timeout", "rate limit", "remote", "capacity", "internal"}
	if int(c) >= 0 && int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("unknown(%d)", int16(c))
}

// MarshalText writes what String returns.
func (c Category) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Verdict overrides what the category says about another attempt.
type Verdict int16

// The verdicts.
const (
	ByCategory Verdict = 0
	Retry      Verdict = 1 // while the policy allows
	Stop       Verdict = 2 // the item is dead
	Disable    Verdict = 3 // the item is dead and its destination disabled: it is gone for good
)

// Error is a classified failure. Classify classifies every other error: it recognises timeouts and
// broken networks, and the rest is transient, so that nothing is lost for lack of a classification.
type Error struct {
	Category   Category
	Verdict    Verdict
	StatusCode int           // of the protocol: HTTP, SMTP
	Code       string        // the other side's own
	RetryAfter time.Duration // how long the other side asked to wait
	Err        error         // what happened and what to do about it; it must hold no secret
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Category.String() + " failure"
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// WillRetry reports whether another attempt makes sense.
func (e *Error) WillRetry() bool {
	if e.Verdict != ByCategory {
		return e.Verdict == Retry
	}
	return !e.Category.Permanent()
}

// Permanent returns err as a failure that is not tried again.
func Permanent(err error) error { return &Error{Category: classify(err), Verdict: Stop, Err: err} }

// Transient returns err as a failure that is tried again.
func Transient(err error) error { return &Error{Category: classify(err), Verdict: Retry, Err: err} }

// RateLimited returns err as a failure that is tried again after the given time at the earliest.
func RateLimited(after time.Duration, err error) error {
	return &Error{Category: RateLimit, RetryAfter: after, Err: err}
}

// Gone returns err as a failure that ends the item and disables the destination.
func Gone(err error) error { return &Error{Category: Configuration, Verdict: Disable, Err: err} }

// Fail returns err as a failure of the given category.
func Fail(c Category, err error) error { return &Error{Category: c, Err: err} }

// Classify returns err as an *Error: the one that err wraps, or a new one. What err wraps decides
// the category of a new one: a timeout, a broken network, a rejected TLS certificate, corrupt
// content or a full disk. An error with a method Permanent() bool that returns true, such as a dial
// to a forbidden address, is a Configuration failure. Classify returns nil for nil.
func Classify(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		c := *e
		c.Err = err
		if inner, ok := err.(*Error); ok { //nolint:errorlint // err itself, whose own words are in Err
			c.Err = inner.Err
		}
		return &c
	}
	return &Error{Category: classify(err), Err: err}
}

func classify(err error) Category {
	var e *Error
	var permanent interface{ Permanent() bool }
	var network net.Error
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &e):
		return e.Category
	case errors.As(err, &permanent) && permanent.Permanent():
		return Configuration
	case errors.Is(err, payload.ErrTooLarge):
		return Validation
	case errors.Is(err, payload.ErrCorrupt):
		return Internal
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return Capacity
	case errors.As(err, &dns), errors.As(err, &certificate), errors.As(err, &record):
		return Network // certificates and names are mended: what waits meanwhile need not be lost
	case errors.As(err, &network):
		if network.Timeout() {
			return Timeout
		}
		return Network
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPIPE):
		return Network
	case errors.Is(err, fs.ErrPermission):
		return Authentication
	}
	return Uncategorized
}

// Unreadable classifies an error of reading the payload. It is a fault of this service, not of the
// destination, and transient. Content that no longer exists (fs.ErrNotExist) or exceeds a limit is
// permanent. The end of ctx stays unchanged.
func Unreadable(err error) error {
	var e *Error
	switch {
	case err == nil, errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, ErrLeaseLost), errors.Is(err, ErrShutdown):
		return err
	case errors.Is(err, payload.ErrTooLarge):
		return &Error{Category: Validation, Err: err}
	}
	e = &Error{Category: Internal, Err: fmt.Errorf("handler: the payload cannot be read: %w", err)}
	if errors.Is(err, fs.ErrNotExist) {
		e.Verdict = Stop
	}
	return e
}

// FromHTTP classifies an HTTP response that is not a success. All handlers share its table. It
// returns nil for 2xx.
//
//	401, 403, 407   authentication  permanent
//	408, 504        timeout         transient
//	409             conflict        permanent
//	410             configuration   permanent, disables the destination
//	413, 414, 431   validation      permanent
//	425, 429        rate limit      transient, after Retry-After
//	507             capacity        transient
//	500, 502, 503, other 5xx        remote, transient (503 after Retry-After); 501 and 505 are configuration
//	404, 405, 3xx and other         configuration, permanent
//	400, 422, other 4xx             validation, permanent
//
// Retry-After is read as seconds or as a date (RFC 9110, section 10.2.3). A date is relative to the
// response's own Date header, if there is one, so that differing clocks do no harm.
func FromHTTP(status int, header map[string][]string, err error) error {
	if status >= 200 && status < 300 {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("the other side answered %d %s", status, http.StatusText(status))
	}
	e := &Error{StatusCode: status, Err: err, RetryAfter: retryAfter(textproto.MIMEHeader(header))}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		e.Category = Authentication
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		e.Category = Timeout
	case http.StatusConflict:
		e.Category = Conflict
	case http.StatusGone:
		e.Category, e.Verdict = Configuration, Disable
	case http.StatusTooEarly, http.StatusTooManyRequests:
		e.Category = RateLimit
	case http.StatusInsufficientStorage:
		e.Category = Capacity
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented,
		http.StatusHTTPVersionNotSupported:
		e.Category = Configuration
	default:
		switch {
		case status >= 500:
			e.Category = Remote
		case status >= 400:
			e.Category = Validation
		default:
			e.Category = Configuration
		}
	}
	return e
}

func retryAfter(h textproto.MIMEHeader) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseInt(v, 10, 64); err == nil {
		const maxSeconds = math.MaxInt64 / int64(time.Second)
		return time.Duration(min(max(0, seconds), maxSeconds)) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return max(0, at.Sub(now))
}
