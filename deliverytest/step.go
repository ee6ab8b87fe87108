package deliverytest

import (
	"context"
	"fmt"
	"strings"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
)

// Step is what a scripted destination does in one attempt or, with [Times] and [Always], in
// several.
type Step struct {
	name  string // as it is written in a test
	do    func(ctx context.Context, req *handler.Request) (*handler.Result, error)
	times int // forever: no end
	fault string
}

const forever = -1

// String returns the step as it is written in a test.
func (s Step) String() string {
	if s.name == "" {
		return "Step{}"
	}
	return s.name
}

func step(name string, do func(ctx context.Context, req *handler.Request) (*handler.Result, error)) Step {
	return Step{name: name, do: do, times: 1}
}

// OK takes the delivery.
func OK() Step { return returns("OK()", nil) }

// Fail fails the attempt with err. err may be or wrap a [handler.Error], which [handler.Permanent],
// [handler.RateLimited], [handler.Gone] and [handler.FromHTTP] make. Any other error is transient.
// Fail(nil) is OK.
func Fail(err error) Step { return returns(fmt.Sprintf("Fail(%v)", err), err) }

func returns(name string, err error) Step {
	return step(name, func(context.Context, *handler.Request) (*handler.Result, error) { return nil, err })
}

// Hang never answers, and the attempt times out. Neither the test nor the kit's clock waits for the
// timeout: the attempt fails at once. A step made by [Do] can really wait for its context; in
// [testing/synctest] that takes no time.
func Hang() Step {
	return returns("Hang()", fmt.Errorf("deliverytest: the destination hangs: %w", context.DeadlineExceeded))
}

// Crash simulates a process that dies during the attempt. Nothing of the attempt is recorded, and
// the item stays leased. When the lease runs out, after 30 s, the item is attempted again under the
// same number. The third time it becomes a dead letter, because it seems to kill its processes.
func Crash() Step {
	return returns("Crash()", fmt.Errorf("deliverytest: %w", settings.ErrCrash))
}

// Panic panics with v in the handler, which makes the attempt fail.
func Panic(v any) Step {
	return step(
		fmt.Sprintf("Panic(%v)", v),
		func(context.Context, *handler.Request) (*handler.Result, error) { panic(v) },
	)
}

// Do calls f in place of a handler's Deliver, on the goroutine of the attempt.
func Do(f func(ctx context.Context, req *handler.Request) (*handler.Result, error)) Step {
	s := step("Do(...)", f)
	if f == nil {
		s.name, s.fault = "Do(nil)", "the function is nil"
	}
	return s
}

// Times repeats s for n attempts, none if n is 0.
func Times(n int, s Step) Step {
	name := fmt.Sprintf("Times(%d, %v)", n, s)
	switch {
	case s.fault != "":
	case n < 0:
		s.fault = "the number is negative"
	case s.times == forever:
		s.fault = "Always already has no end"
	}
	s.name = name
	s.times *= n
	return s
}

// Always repeats s for all further attempts. It can only be the last step.
func Always(s Step) Step {
	s.name, s.times = fmt.Sprintf("Always(%v)", s), forever
	return s
}

// script is what a destination does, step by step.
type script struct {
	steps []Step
	at    int // the current step
	done  int // attempts made in the current step
	total int // attempts made in all steps
}

// check describes the first fault of a script, "" if it has none.
func (s *script) check() string {
	for i, step := range s.steps {
		switch {
		case step.fault != "":
			return fmt.Sprintf("step %d, %v: %s", i+1, step, step.fault)
		case step.do == nil:
			return fmt.Sprintf("step %d is an empty Step; make steps with OK, Fail, Do and the like", i+1)
		case step.times == forever && i < len(s.steps)-1:
			return fmt.Sprintf("step %d, %v, is never reached: step %d, %v, has no end", i+2, s.steps[i+1], i+1, step)
		}
	}
	return ""
}

// next returns the step of the next attempt; ok is false at the end of the script.
func (s *script) next() (step Step, ok bool) {
	for s.at < len(s.steps) && s.steps[s.at].times != forever && s.done >= s.steps[s.at].times {
		s.at, s.done = s.at+1, 0
	}
	if s.at == len(s.steps) {
		return Step{}, false
	}
	s.done++
	s.total++
	return s.steps[s.at], true
}

// String returns the script as it is written in a test.
func (s *script) String() string {
	names := make([]string, len(s.steps))
	for i, step := range s.steps {
		names[i] = step.String()
	}
	return strings.Join(names, ", ")
}
