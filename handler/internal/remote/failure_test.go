package remote_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/internal/redact"
)

func TestKnown(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	classified := handler.Fail(handler.Internal, errors.New("ours"))
	if err := remote.Known(ctx, classified); !errors.Is(err, classified) {
		t.Errorf("a classified error: %v", err)
	}
	if err := remote.Known(ctx, io.EOF); err != nil {
		t.Errorf("another error: %v", err)
	}
	cancel(handler.ErrShutdown)
	if err := remote.Known(ctx, classified); !errors.Is(err, handler.ErrShutdown) {
		t.Errorf("after the end of ctx: %v", err)
	}
}

func TestUnanswered(t *testing.T) {
	t.Parallel()
	r := redact.New(destination.NewSecret("canary-1"))
	inner := &url.Error{Op: "Put", URL: "https://example.com/?sig=canary-2", Err: io.ErrUnexpectedEOF}
	e := remote.Unanswered("s3: cannot store", inner, r, "")
	if e.Category != handler.Network || e.Error() != "s3: cannot store: unexpected EOF" || !errors.Is(e, io.ErrUnexpectedEOF) {
		t.Errorf("%s, %v", e.Category, e)
	}
	e = remote.Unanswered("s3: cannot store", errors.New("odd canary-1"), r, "look there")
	if e.Category != handler.Network || e.Error() != "s3: cannot store: odd [redacted]; look there" {
		t.Errorf("%s, %v", e.Category, e)
	}
	if e = remote.Unanswered("s3", context.DeadlineExceeded, r, ""); e.Category != handler.Timeout {
		t.Errorf("%s, %v", e.Category, e)
	}
}

var table = map[string]remote.Verdict{
	"SlowDown": {Category: handler.RateLimit, Hint: "too many requests"},
	"NoBucket": {Category: handler.Configuration, Hint: "create it"},
	"Gone":     {Category: handler.Remote},
}

func TestFailure(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer   remote.Answer
		category handler.Category
		text     string
	}{
		"by its status":  {remote.Answer{Status: 403, Code: "Denied", Message: "no"}, handler.Authentication, "403 Denied: no"},
		"by its code":    {remote.Answer{Status: 404, Code: "NoBucket", Message: "NoBucket"}, handler.Configuration, "404 NoBucket; create it"},
		"passing":        {remote.Answer{Status: 503, Code: "SlowDown"}, handler.RateLimit, "503 SlowDown; too many requests; it is tried again later"},
		"overruled":      {remote.Answer{Status: 410, Code: "Gone"}, handler.Remote, "410 Gone"},
		"without status": {remote.Answer{Code: "NoBucket", Message: "m"}, handler.Configuration, "NoBucket: m; create it"},
		"unavailable": {
			remote.Answer{Status: 503, Header: http.Header{"Retry-After": {"7"}}}, handler.Remote, "503; it is tried again later",
		},
	} {
		f := test.answer.Failure()
		if listed := f.LookUp(table); listed != (table[test.answer.Code] != remote.Verdict{}) {
			t.Errorf("%s: listed is %t", name, listed)
		}
		e := handler.Classify(f.In("x"))
		if e.Category != test.category || e.Error() != "x: the other side answered "+test.text || e.StatusCode != test.answer.Status ||
			e.Code != test.answer.Code || e.Verdict != handler.ByCategory {
			t.Errorf("%s: %s, %+v", name, e.Category, e)
		}
	}
	f := remote.Answer{Status: 400, Code: "BadDigest"}.Failure()
	f.Is(handler.Network, "changed on the way")
	f.Cause = io.ErrUnexpectedEOF
	if err := f.In("x"); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasSuffix(err.Error(), "BadDigest; changed on the way: unexpected EOF") {
		t.Error(err)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	e := handler.Classify(remote.Answer{Status: 400, Code: "invalid_client", Message: "unknown"}.Refusal("compare client_id").In("x"))
	if e.Category != handler.Authentication || e.Error() != "x: the other side answered 400 invalid_client: unknown; compare client_id" {
		t.Errorf("%s, %v", e.Category, e)
	}
	busy := remote.Answer{Status: 429, Header: http.Header{"Retry-After": {"7"}}}
	e = handler.Classify(busy.Refusal("compare client_id").In("x"))
	if e.Category != handler.RateLimit || e.RetryAfter != 7*time.Second || e.Error() != "x: the other side answered 429; it is tried again later" {
		t.Errorf("%s, %v", e.Category, e)
	}
}
