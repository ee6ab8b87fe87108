package deliverytest

import (
	"context"
	"fmt"
	"strings"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
)

// Step is what a scripted destination does in one attempt or, by Times and Always, in several.
type Step struct {
	name  string // as it is written in a test
	do    func(ctx context.Context, req *handler.Request) (*handler.Result, error)
	times int // forever: without end
	fault string
}

const forever = -1

// String is the step as it is written in a test.
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

// Fail fails the attempt with err, which may be or wrap a *handler.Error: handler.Permanent,
// handler.RateLimited, handler.Gone and handler.FromHTTP make them. Any other error is transient.
// Fail(nil) is OK.
func Fail(err error) Step { return returns(fmt.Sprintf("Fail(%v)", err), err) }

func returns(name string, err error) Step {
	return step(name, func(context.Context, *handler.Request) (*handler.Result, error) { return nil, err })
}

// Hang never answers, and the attempt ends at its timeout. Neither the test nor the kit's clock
// waits for that: the attempt fails at once, as one that has timed out. A step made by Do can wait
// for its context in earnest, for which testing/synctest saves the time.
func Hang() Step {
	return returns("Hang()", fmt.Errorf("deliverytest: the destination hangs: %w", context.DeadlineExceeded))
}

// Crash is the death of the process in the middle of the attempt, as far as this item can tell:
// nothing of it is recorded, and the item stays leased. It is attempted again when the lease runs
// out, after 30 s, under the same number; the third time it is dead, as one that kills its
// processes.
func Crash() Step {
	return returns("Crash()", fmt.Errorf("deliverytest: %w", settings.ErrCrash))
}

// Panic panics with v in the handler, which is a failed attempt.
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

// Times is s for n attempts, none if n is 0.
func Times(n int, s Step) Step {
	name := fmt.Sprintf("Times(%d, %v)", n, s)
	switch {
	case s.fault != "":
	case n < 0:
		s.fault = "the number is negative"
	case s.times == forever:
		s.fault = "Always has no end already"
	}
	s.name = name
	s.times *= n
	return s
}

// Always is s for all attempts that come; it can only be the last step.
func Always(s Step) Step {
	s.name, s.times = fmt.Sprintf("Always(%v)", s), forever
	return s
}

// script is what a destination does, step by step.
type script struct {
	steps []Step
	at    int // the current step
	done  int // attempts that it has made of it
	total int // attempts so far
}

// check says what is wrong with a script, "" if nothing is.
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

// next returns the step of the next attempt; ok is false where there is none.
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

// String is the script as it is written in a test.
func (s *script) String() string {
	names := make([]string, len(s.steps))
	for i, step := range s.steps {
		names[i] = step.String()
	}
	return strings.Join(names, ", ")
}
