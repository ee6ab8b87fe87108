package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/observe"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/redact"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/spool"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// cancellation is the cause of an attempt's context when its item is to be cancelled.
type cancellation struct{ reason queue.Reason }

func (c cancellation) Error() string { return "delivery: cancelled: " + c.reason.String() }

// errExit is the error of an attempt whose handler neither returned nor panicked.
var errExit = errors.New("the handler ended its goroutine")

// attempt is one turn of a worker at a job. run may call the handler, and may not return: a handler
// can end its goroutine. The caller defers end, which turns what run left into the job's outcome.
type attempt struct {
	e      *Engine
	j      *job
	option sqlstore.Option // the request's, for this item
	began  time.Time

	refused queue.Reason // why the handler was not called; None if it was
	result  *handler.Result
	err     error

	observed func(observe.Outcome) // to be told the outcome; nil if nobody asks
}

// newAttempt returns an attempt that, unless it is run, gives the item back to the queue.
func newAttempt(e *Engine, j *job) *attempt {
	return &attempt{e: e, j: j, refused: queue.Released}
}

// run makes the attempt. ctx ends with a cause when the attempt has no point any more:
// [handler.ErrLeaseLost], [handler.ErrShutdown], or a cancellation.
func (a *attempt) run(ctx context.Context) {
	a.began = a.e.Now()
	if err := undecodable(a.j.Content); err != nil {
		a.refused, a.err = queue.Undecodable, handler.Fail(handler.Internal, err)
		return
	}
	if !a.j.Deadline.IsZero() && !a.began.Before(a.j.Deadline) {
		a.refused = queue.DeadlinePassed
		return
	}
	a.option = a.j.Content.Options.Items[a.j.N]
	a.refused, a.err = queue.None, errExit
	a.result, a.err = a.deliver(a.observe(ctx))
}

// end sets the job's outcome. It reports whether the attempt crashed: it is to look as if the
// process had died, and has no outcome. cause is the cause of run's context, nil if that has not
// ended.
func (a *attempt) end(cause error) (crashed bool) {
	if errors.Is(a.err, settings.ErrCrash) {
		return true
	}
	a.j.outcome = a.outcome(cause)
	a.observeEnd(&a.j.outcome)
	return false
}

// outcome is what becomes of the item.
func (a *attempt) outcome(cause error) queuestore.Outcome {
	o := a.j.untouched()
	switch a.refused {
	case queue.None:
	case queue.Released:
		return o
	default:
		o.State, o.Reason = queue.Dead, a.refused
		if a.err != nil {
			o.Failure = failure(a.err)
		}
		return o
	}
	err := a.err
	if err != nil && cause != nil {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	o.Number, o.Took = a.j.Attempt+1, max(0, a.e.Now().Sub(a.began))
	o.Reference, o.Detail = record(a.result)
	decide(&o, a.policy(), err)
	o.Written = err == nil && a.removable()
	return o
}

// untouched is the outcome of an item that goes back to the queue without an attempt.
func (j *job) untouched() queuestore.Outcome {
	o := queuestore.Outcome{
		No: queuestore.DestinationOf(j.Lane), Ailing: j.ailing, Breaker: j.destination.Breaker.Or(j.policy.Breaker),
	}
	o.Key, o.Place, o.Destination = j.Key, j.Place, j.destination.ID
	o.State, o.Reason, o.Took = queue.Ready, queue.Released, sqlstore.NotBegun
	return o
}

// policy is the retry policy of the attempt.
func (a *attempt) policy() retry.Policy {
	return a.option.Retry.Or(a.j.Content.Options.Retry).Or(a.j.destination.Retry).Or(a.j.policy.Retry)
}

// removable reports whether what the attempt wrote is to be removed some day. Where the handler
// fails to say, it is noted: the chore that removes asks again.
func (a *attempt) removable() bool {
	if a.result == nil || !a.result.Removable {
		return false
	}
	keep, err := a.j.destination.typ.Retention(a.j.destination.config)
	return keep > 0 || err != nil
}

// record returns what is kept of a handler's result. Credentials are redacted.
func record(result *handler.Result) (reference handler.Reference, detail sqlstore.Detail) {
	if result == nil {
		return reference, detail
	}
	detail = sqlstore.Detail{Exchange: result.Exchange, Parts: result.Parts, Notes: result.Notes}
	if x := result.Exchange; x != nil {
		c := *x
		c.RequestHeaders, c.ResponseHeaders = redact.Headers(x.RequestHeaders), redact.Headers(x.ResponseHeaders)
		detail.Exchange = &c
	}
	return result.Reference, detail
}

// decide is the rule for what becomes of an item after attempt o.Number ended with err.
func decide(o *queuestore.Outcome, policy retry.Policy, err error) {
	if err == nil {
		o.State, o.Reason, o.Blame = queue.Delivered, queue.None, queuestore.Success
		return
	}
	f := handler.Classify(err)
	o.Failure = failure(f)
	var cancelled cancellation
	switch {
	case errors.As(err, &cancelled):
		o.State, o.Reason = queue.Cancelled, cancelled.reason
		return
	case errors.Is(err, handler.ErrShutdown), errors.Is(err, handler.ErrLeaseLost):
		o.State, o.Reason, o.Number = queue.Ready, queue.Released, 0
		return
	case errors.Is(err, payload.ErrCorrupt), errors.Is(err, spool.ErrGone):
		o.State, o.Reason = queue.Dead, queue.Undecodable
		return
	}
	if f.Category != handler.Internal && !errors.Is(err, payload.ErrTooLarge) { // those are on our side
		o.Blame = queuestore.Fault
	}
	again := f.WillRetry()
	rule, exact, found := policy.Rule(f.Category.String(), f.StatusCode)
	if found && (f.Verdict != handler.Disable || exact) {
		again, f.Verdict = rule, handler.ByCategory
	}
	switch {
	case f.Verdict == handler.Disable:
		o.State, o.Reason, o.Disable = queue.Dead, queue.Permanent, "the other side says it is gone: "+o.Failure.Text
	case !again:
		o.State, o.Reason = queue.Dead, queue.Permanent
	case policy.Exhausted(o.Number):
		o.State, o.Reason = queue.Dead, queue.Exhausted
	default:
		o.State, o.Reason, o.Charge = queue.Scheduled, queue.Backoff, true
		o.Delay = policy.Delay(o.Number, f.RetryAfter)
	}
}

const maxErrorText = 2000 // bytes

func failure(err error) *sqlstore.Failure {
	f := handler.Classify(err)
	return &sqlstore.Failure{
		Category: f.Category, StatusCode: f.StatusCode,
		Code: sqlstore.Excerpt(f.Code, maxErrorText), Text: sqlstore.Excerpt(f.Error(), maxErrorText),
	}
}

// deliver calls the handler within its time, and turns a panic into an error.
func (a *attempt) deliver(ctx context.Context) (result *handler.Result, err error) {
	limits := a.j.destination.Limits.Or(a.j.policy.Limits)
	if size := a.j.Content.Payload.Size; limits.MaxBytes > 0 && size > limits.MaxBytes {
		return nil, handler.Fail(handler.Validation, fmt.Errorf(
			"%w: the payload has %d bytes, the destination takes at most %d", payload.ErrTooLarge, size,
			limits.MaxBytes,
		))
	}
	timeout := time.Duration(limits.Timeout)
	if !a.j.Deadline.IsZero() {
		timeout = min(timeout, a.j.Deadline.Sub(a.e.Now()))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	content, err := a.e.content(ctx, a.j.Content)
	if err != nil {
		return nil, err
	}
	req := a.request(ctx, content)
	returned := false
	defer func() {
		if returned {
			return
		}
		problem := errExit
		if p := recover(); p != nil { // it is nil, and stops nothing, after runtime.Goexit
			problem = fmt.Errorf("the handler panicked: %v", p)
		}
		a.e.Logger.ErrorContext(
			ctx, "delivery: an attempt ended badly", "error", problem, "organization", a.j.Organization, "item",
			req.ItemID, "type", a.j.destination.Type, "stack", string(debug.Stack()),
		)
		result, err = nil, problem
	}()
	result, err = a.j.destination.typ.Handler.Deliver(ctx, req)
	returned = true
	timedOut := errors.Is(ctx.Err(), context.DeadlineExceeded)
	if timedOut && errors.Is(err, context.Canceled) { // a handler may not tell the two apart
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return result, err
}

// request is what the handler is asked to deliver.
func (a *attempt) request(ctx context.Context, content *payload.Content) *handler.Request {
	j, d := a.j, a.j.Content
	item := sqlstore.ItemID(j.Delivery, j.N)
	return &handler.Request{
		MessageID:    item,
		DeliveryID:   j.Delivery,
		ItemID:       item,
		Attempt:      j.Attempt + 1,
		Organization: j.Organization,
		Destination:  &j.destination.DestinationRow.Destination,
		Config:       j.destination.config,
		Payload:      content,
		Topic:        d.Topic,
		Test:         d.Options.Test,
		Metadata:     d.Metadata,
		Params:       a.option.Params,
		CreatedAt:    d.CreatedAt,
		Deadline:     j.Deadline,
		TraceParent:  d.TraceParent,
		Transfer:     newTransfer(ctx, a.e, j),
	}
}

func undecodable(d *sqlstore.DeliveryRow) error {
	if d == nil {
		return errors.New("its delivery is gone")
	}
	return d.Faulty
}

// content returns the payload of a delivery for a handler to read.
func (e *Engine) content(ctx context.Context, d *sqlstore.DeliveryRow) (*payload.Content, error) {
	p := d.Payload
	switch {
	case p.Source != "":
		source := e.Sources[p.Source]
		if source == nil {
			err := fmt.Errorf("no payload source %q is registered in this process", p.Source)
			return nil, handler.Fail(handler.Internal, err)
		}
		c, err := source.Open(ctx, d.Organization, p.Ref)
		if errors.Is(err, fs.ErrNotExist) {
			err = handler.Permanent(err)
		}
		if err == nil && c == nil {
			err = handler.Fail(
				handler.Internal,
				fmt.Errorf("the payload source %q returned no content and no error", p.Source),
			)
		}
		return c, err
	case p.ID != "":
		return e.spool.Open(d.Organization, p.ID, p.Info), nil
	}
	return payload.NewContent(p.Info, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		if offset > int64(len(p.Inline)) {
			return nil, spool.ErrGone
		}
		return io.NopCloser(bytes.NewReader(p.Inline[offset:])), nil
	}), nil
}
