package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
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

// errExit is what an attempt ends with whose handler neither returned nor panicked.
var errExit = errors.New("the handler ended its goroutine")

// attempt makes one attempt, notes what it makes of the item in j.outcome, and calls done once, also when the handler ends
// its goroutine. crashed is that it shall look as if the process had died. ctx ends with a cause when the attempt has no point any more:
// handler.ErrLeaseLost, handler.ErrShutdown, cancellation.
func (e *Engine) attempt(ctx context.Context, j *job, done func(crashed bool)) {
	o := &j.outcome
	began := e.Now()
	if err := undecodable(j.Content); err != nil {
		o.State, o.Reason, o.Failure = queue.Dead, queue.Undecodable, failure(handler.Fail(handler.Internal, err))
		done(false)
		return
	}
	if !j.Deadline.IsZero() && !began.Before(j.Deadline) {
		o.State, o.Reason = queue.Dead, queue.DeadlinePassed
		done(false)
		return
	}
	option := j.Content.Options.Items[j.N]
	policy := option.Retry.Or(j.Content.Options.Retry).Or(j.destination.Retry).Or(j.policy.Retry)
	var result *handler.Result
	err := errExit
	defer func() {
		if errors.Is(err, settings.ErrCrash) {
			done(true)
			return
		}
		if err != nil && context.Cause(ctx) != nil {
			err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
		o.Number, o.Took = j.Attempt+1, max(0, e.Now().Sub(began))
		record(o, result)
		decide(o, policy, err)
		if r := j.destination.typ.Remover; r != nil && err == nil && result != nil && result.Removable {
			o.Written = r.Retention(j.destination.config) > 0
		}
		done(false)
	}()
	result, err = e.deliver(ctx, j, option)
}

// release is the outcome of a lease that is given back before its attempt.
func (j *job) release() {
	o := &j.outcome
	*o = sqlstore.Outcome{No: sqlstore.DestinationOf(j.Lane), Ailing: j.ailing, Breaker: j.destination.Breaker.Or(j.policy.Breaker)}
	o.Key, o.Place, o.Destination, o.State, o.Reason, o.Took = j.Key, j.Place, j.destination.ID, queue.Ready, queue.Released, sqlstore.NotBegun
}

// record keeps what a handler returned, credentials redacted.
func record(o *sqlstore.Outcome, result *handler.Result) {
	if result == nil {
		return
	}
	o.Reference = result.Reference
	o.Detail = sqlstore.Detail{Exchange: result.Exchange, Parts: result.Parts, Notes: result.Notes}
	if x := result.Exchange; x != nil {
		c := *x
		c.RequestHeaders, c.ResponseHeaders = redact.Headers(x.RequestHeaders), redact.Headers(x.ResponseHeaders)
		o.Detail.Exchange = &c
	}
}

// decide is the rule of what becomes of an item after attempt o.Number ended with err.
func decide(o *sqlstore.Outcome, policy retry.Policy, err error) {
	if err == nil {
		o.State, o.Reason, o.Blame = queue.Delivered, queue.None, sqlstore.Success
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
		o.Blame = sqlstore.Fault
	}
	again := f.WillRetry()
	if rule, exact, found := policy.Rule(f.Category.String(), f.StatusCode); found && (f.Verdict != handler.Disable || exact) {
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
	return &sqlstore.Failure{Category: f.Category, StatusCode: f.StatusCode, Code: sqlstore.Excerpt(f.Code, maxErrorText), Text: sqlstore.Excerpt(f.Error(), maxErrorText)}
}

// deliver calls the handler within its time, and turns a panic into an error.
func (e *Engine) deliver(ctx context.Context, j *job, option sqlstore.Option) (result *handler.Result, err error) {
	d, limits := j.Content, j.destination.Limits.Or(j.policy.Limits)
	if limits.MaxBytes > 0 && d.Payload.Size > limits.MaxBytes {
		return nil, handler.Fail(handler.Validation,
			fmt.Errorf("%w: the payload has %d bytes, the destination takes at most %d", payload.ErrTooLarge, d.Payload.Size, limits.MaxBytes))
	}
	timeout := time.Duration(limits.Timeout)
	if !j.Deadline.IsZero() {
		timeout = min(timeout, j.Deadline.Sub(e.Now()))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	content, err := e.content(ctx, d)
	if err != nil {
		return nil, err
	}
	item := sqlstore.ItemID(j.Delivery, j.N)
	req := &handler.Request{
		MessageID: item, DeliveryID: j.Delivery, ItemID: item, Attempt: j.Attempt + 1,
		Organization: j.Organization, Destination: &j.destination.Destination.Destination, Config: j.destination.config, Payload: content, Topic: d.Topic, Test: d.Options.Test,
		Metadata: d.Metadata, Params: option.Params, CreatedAt: d.CreatedAt, Deadline: j.Deadline, TraceParent: d.TraceParent,
		Transfer: newTransfer(ctx, e, j),
	}
	returned := false
	defer func() {
		if returned {
			return
		}
		problem := errExit
		if p := recover(); p != nil { // it is nil, and stops nothing, after runtime.Goexit
			problem = fmt.Errorf("the handler panicked: %v", p)
		}
		e.Logger.ErrorContext(ctx, "delivery: an attempt ended badly", "error", problem, "organization", j.Organization,
			"item", req.ItemID, "type", j.destination.Type, "stack", string(debug.Stack()))
		result, err = nil, problem
	}()
	result, err = j.destination.typ.Handler.Deliver(ctx, req)
	returned = true
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return result, err
}

func undecodable(d *sqlstore.Delivery) error {
	if d == nil {
		return errors.New("its delivery is gone")
	}
	return d.Faulty
}

// content is what a handler reads of a delivery's payload.
func (e *Engine) content(ctx context.Context, d *sqlstore.Delivery) (*payload.Content, error) {
	p := d.Payload
	switch {
	case p.Source != "":
		source := e.Sources[p.Source]
		if source == nil {
			return nil, handler.Fail(handler.Internal, fmt.Errorf("no payload source %q is registered in this process", p.Source))
		}
		c, err := source.Open(ctx, d.Organization, p.Ref)
		if errors.Is(err, fs.ErrNotExist) {
			err = handler.Permanent(err)
		}
		if err == nil && c == nil {
			err = handler.Fail(handler.Internal, fmt.Errorf("the payload source %q returned no content and no error", p.Source))
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

// transfer keeps the checkpoints of one lease, and tells how far its attempt has come.
type transfer struct {
	ctx   context.Context //nolint:containedctx // Resume takes none: it is the attempt's
	e     *Engine
	j     *job
	told  atomic.Int64 // when it was last told, in nanoseconds since began
	began time.Time
}

// progressEvery is how often it is told how far an attempt has come, first after as much time.
const progressEvery = time.Second

func newTransfer(ctx context.Context, e *Engine, j *job) *transfer {
	return &transfer{ctx: ctx, e: e, j: j, began: time.Now()}
}

func (t *transfer) Progress(done int64) {
	t.j.progress.Store(done)
	told, now := t.told.Load(), int64(time.Since(t.began))
	if now-told < int64(progressEvery) || !t.told.CompareAndSwap(told, now) {
		return
	}
	t.e.bus.Publish(event.Event{
		Kind: event.ItemProgress, Organization: t.j.Organization, Destination: t.j.destination.ID,
		Item: sqlstore.ItemID(t.j.Delivery, t.j.N), Progress: done,
	})
}

func (t *transfer) Resume() (value json.RawMessage, err error) {
	err = t.e.Store.Read(t.ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		value, err = tx.Checkpoint(ctx, t.j.Key)
		return err
	})
	return value, err
}

func (t *transfer) Checkpoint(ctx context.Context, value json.RawMessage) error {
	held := false
	err := t.e.Store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		held, err = tx.SaveCheckpoint(ctx, t.j.Key, value)
		return err
	}, nil)
	if err == nil && !held {
		err = handler.ErrLeaseLost
	}
	return err
}
