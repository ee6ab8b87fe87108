package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/redact"
)

// Known returns the error of an attempt that needs no further classification: the cause of ctx once
// that has ended, or err where a handler.Error is in it already. Otherwise it returns nil.
func Known(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var e *handler.Error
	if errors.As(err, &e) {
		return err
	}
	return nil
}

// Unanswered classifies an error without an answer of the other side, or with one that could not be
// read. The URL of the request stays out of the message: it may be a credential. hint is appended,
// if there is one.
func Unanswered(where string, err error, r *redact.Redactor, hint string) *handler.Error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	e := handler.Classify(err)
	if e.Category == handler.Uncategorized {
		e.Category = handler.Network // an answer that is not HTTP, or not in the protocol's format
	}
	if hint != "" {
		hint = "; " + hint
	}
	e.Err = fmt.Errorf("%s: %w%s", where, r.Wrap(err), hint)
	return e
}

// Answer is how the other side refused a request. Code and Message are its own words, without
// secrets.
type Answer struct {
	Status  int // of HTTP; 0 where there is none
	Header  http.Header
	Code    string
	Message string
}

// Verdict is what a code means: the category, and a hint about what to do.
type Verdict struct {
	Category handler.Category
	Hint     string
}

// Means returns a Verdict.
func Means(c handler.Category, hint string) Verdict { return Verdict{Category: c, Hint: hint} }

// Failure is the classification of an Answer.
type Failure struct {
	*handler.Error
	Answer Answer
	Hint   string // what to do about it
	Cause  error  // to be found by errors.Is; may be nil
}

// later is the hint for failures that pass by themselves.
const later = "it is tried again later"

// Failure classifies an answer by its status: see handler.FromHTTP.
func (a Answer) Failure() *Failure {
	e := &handler.Error{StatusCode: a.Status}
	if a.Status >= http.StatusMultipleChoices {
		e = handler.Classify(handler.FromHTTP(a.Status, a.Header, nil))
	}
	e.Code = a.Code
	return &Failure{Error: e, Answer: a}
}

// Refusal classifies an answer of a service that gives credentials: they are refused, unless the
// service is busy or broken.
func (a Answer) Refusal(hint string) *Failure {
	f := a.Failure()
	if a.Status == http.StatusTooManyRequests || a.Status >= http.StatusInternalServerError {
		f.Hint = later
		return f
	}
	f.Error = &handler.Error{Category: handler.Authentication, StatusCode: a.Status, Code: a.Code}
	f.Hint = hint
	return f
}

// Is overrules the classification.
func (f *Failure) Is(c handler.Category, hint string) {
	f.Category, f.Verdict, f.Hint = c, handler.ByCategory, hint
}

// LookUp overrules the classification where the code of the answer is in a table, and reports
// whether it is.
func (f *Failure) LookUp(table map[string]Verdict) bool {
	v, ok := table[f.Answer.Code]
	if ok {
		f.Is(v.Category, v.Hint)
	}
	return ok
}

// In returns the failure as an error that says where it happened, what the other side said, and
// what to do. The answer itself is not wrapped: it may repeat what it was sent.
func (f *Failure) In(where string) error {
	text := where + ": the other side answered"
	if f.Answer.Status != 0 {
		text += fmt.Sprintf(" %d", f.Answer.Status)
	}
	if f.Answer.Code != "" {
		text += " " + f.Answer.Code
	}
	if m := f.Answer.Message; m != "" && m != f.Answer.Code {
		text += ": " + m
	}
	if f.Hint != "" {
		text += "; " + f.Hint
	}
	passes := f.Answer.Status == http.StatusServiceUnavailable && f.RetryAfter > 0 || f.Category == handler.RateLimit
	if passes && f.Hint != later {
		text += "; " + later
	}
	f.Err = errors.New(text)
	if f.Cause != nil {
		f.Err = fmt.Errorf("%s: %w", text, f.Cause)
	}
	return f.Error
}
