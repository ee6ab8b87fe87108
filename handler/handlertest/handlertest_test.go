package handlertest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/payload"
)

// The handler that the suite is tried on: a shelf in memory. Flaws are what a handler may have.
type shelf struct {
	mu   sync.Mutex
	kept map[string][]byte
}

type shelfConfig struct {
	Name  string             `json:"name"`
	Owner string             `json:"owner"`
	Token destination.Secret `json:"token"`
	Full  bool               `json:"full,omitempty"`

	Former []destination.Secret `json:"former,omitempty"`
}

func (shelfConfig) DestinationType() string { return "shelf" }

func (c shelfConfig) Validate() error {
	return errors.Join(destination.Require("name", c.Name), destination.Require("owner", c.Owner))
}

type shelfHandler struct {
	handler.Parser[shelfConfig]
	*shelf
	flaw string
}

func (h *shelfHandler) ParseConfig(raw json.RawMessage) (any, error) {
	var c shelfConfig
	switch h.flaw {
	case "panics":
		if bytes.Contains(raw, []byte("null")) {
			panic("null")
		}
	case "quotes":
		if err := json.Unmarshal(raw, &c); err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", raw, err)
		}
	case "one at a time":
		if err := handler.Decode(raw, &c); err != nil {
			return nil, err
		}
		if err := destination.Require("name", c.Name); err != nil {
			return nil, err
		}
		return c, destination.Require("owner", c.Owner)
	case "not stable":
		v, err := h.Parser.ParseConfig(raw)
		if c, ok := v.(shelfConfig); ok {
			c.Name += "x"
			return c, err
		}
		return v, err
	}
	return h.Parser.ParseConfig(raw)
}

func (h *shelfHandler) Complete(config, _ any) (any, error) { return config, nil }

func (h *shelfHandler) SigningSecrets(config any) []destination.Secret {
	c := config.(shelfConfig)
	return append([]destination.Secret{c.Token}, c.Former...)
}

func (h *shelfHandler) Rotate(config any, r handler.Rotation) (any, error) {
	c := config.(shelfConfig)
	if r.Secret.IsRedacted() && h.flaw != "takes a placeholder" {
		return nil, destination.Invalid("token", "is the placeholder")
	}
	before := h.SigningSecrets(c)
	c.Former = nil
	if r.Until.After(r.Now) && h.flaw != "forgets" || h.flaw == "never ends" {
		c.Former = before
	}
	if h.flaw != "rotates nothing" {
		c.Token = destination.NewSecret(rand.Text())
	}
	return c, nil
}

func (h *shelfHandler) Warn(config any) []*destination.FieldError {
	c := config.(shelfConfig)
	if h.flaw == "warns aloud" {
		return []*destination.FieldError{{Path: "token", Code: "weak", Message: c.Token.Reveal() + " is weak"}}
	}
	return []*destination.FieldError{{Path: "name", Code: "short", Message: "is short"}}
}

func (h *shelfHandler) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	c := req.Config.(shelfConfig)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if c.Full {
		if h.flaw == "wrong category" {
			return nil, errors.New("full")
		}
		return nil, handler.Fail(handler.Capacity, errors.New("shelf: is full"))
	}
	r, err := req.Open(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil && h.flaw != "takes half" {
		return nil, err
	}
	result := &handler.Result{Reference: handler.Reference{ID: req.MessageID}}
	switch h.flaw {
	case "shows":
		result.Notes = map[string]string{"token": c.Token.Reveal()}
	case "changes":
		req.Metadata["seen"] = "yes"
	case "cuts":
		b = b[:min(len(b), 1<<20)]
	case "leaves":
		go func() { <-forever }()
	case "wraps":
		return nil, fmt.Errorf("token %s refused", c.Token.Reveal())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	id := req.MessageID
	if h.flaw == "twice" {
		id += fmt.Sprint("/", len(h.kept))
	}
	h.kept[id] = b
	return result, nil
}

var forever = make(chan struct{})

func harness(flaw string) handlertest.Harness {
	s := &shelf{kept: map[string][]byte{}}
	config := shelfConfig{Name: "a", Owner: "b", Token: destination.NewSecret("token-canary-44")}
	full := config
	full.Full = true
	return handlertest.Harness{
		New: func() handler.Handler { return &shelfHandler{shelf: s, flaw: flaw} },
		Peer: func(testing.TB) handlertest.Peer {
			return handlertest.Peer{Config: config, Secrets: []string{"token-canary-44"}, Received: func(req *handler.Request) [][]byte {
				s.mu.Lock()
				defer s.mu.Unlock()
				var all [][]byte
				for id, b := range s.kept {
					if strings.HasPrefix(id, req.MessageID) {
						all = append(all, b)
					}
				}
				return all
			}}
		},
		Faults: []handlertest.Fault{{Name: "full", Category: handler.Capacity, WillRetry: true, Peer: func(testing.TB) handlertest.Peer {
			return handlertest.Peer{Config: full, Secrets: []string{"token-canary-44"}}
		}}},
		Invalid:    []handlertest.Invalid{{Name: "empty", Config: shelfConfig{}, Paths: []string{"name", "owner"}}},
		Local:      true,
		Untestable: true,
		Patience:   1e9,
	}
}

const flawed = "HANDLERTEST_FLAW"

func TestSoundHandler(t *testing.T) {
	t.Parallel()
	if flaw := os.Getenv(flawed); flaw == "no faults" {
		h := harness("")
		h.Faults, h.Local = nil, false
		handlertest.Run(t, h)
	} else {
		handlertest.Run(t, harness(flaw))
	}
}

// Each flaw must fail the suite, and its message must say what is wrong. The suite runs in a
// process of its own for that.
func TestFlawsAreFound(t *testing.T) {
	t.Parallel()
	for flaw, message := range map[string]string{
		"panics":         "ParseConfig panics",
		"quotes":         "secret 0 can be seen in the error",
		"one at a time":  `faulty fields ["name"], want ["name" "owner"]`,
		"not stable":     "the stored form changes",
		"shows":          "secret 0 can be seen in the Result",
		"wraps":          "secret 0 can be seen in the error",
		"changes":        "Metadata of the Request has changed",
		"cuts":           "bytes were sent, and the other side has 1048576 bytes",
		"leaves":         "goroutines of attempts are left",
		"twice":          "the other side has 2 of the message that came twice",
		"takes half":     "are delivered",
		"wrong category": "category uncategorized",
		"no faults":      "the Harness has no Faults",

		"forgets":             "1 secrets after a rotation with an overlap of 1h0m0s",
		"never ends":          "2 secrets after a rotation with an overlap of 0s",
		"rotates nothing":     "want a new one",
		"takes a placeholder": "Rotate takes the placeholder",
		"warns aloud":         "secret 0 can be seen in the warning at token",
	} {
		t.Run(flaw, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSoundHandler$", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), flawed+"="+flaw)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), message) {
				t.Errorf("%v, want %q in:\n%s", err, message, out)
			}
		})
	}
}

func TestRequestOfAPlainHandler(t *testing.T) {
	t.Parallel()
	h := plain{}
	req := handlertest.Request(t, h, destination.As("plain", `{"a":1}`), payload.Bytes("a.txt", []byte("x")))
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Error(err)
	}
	if raw, ok := req.Config.(json.RawMessage); !ok || string(raw) != `{"a":1}` || req.Destination.Type != "plain" || req.Attempt != 1 {
		t.Errorf("%+v", req)
	}
	if info := req.Payload.Info(); info.Name != "a.txt" || info.Size != 1 || len(info.SHA256) != 64 {
		t.Errorf("%+v", info)
	}
}

type plain struct{}

func (plain) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	_, err := req.Payload.ReadAll(ctx, 10)
	return nil, err
}

// wrapped is a host's wrapper: the suite checks the optional interfaces of what it wraps.
type wrapped struct{ handler.Handler }

func (w wrapped) Unwrap() handler.Handler { return w.Handler }

func TestWrappedHandler(t *testing.T) {
	t.Parallel()
	h := harness("")
	inner := h.New
	h.New = func() handler.Handler { return wrapped{inner()} }
	handlertest.Run(t, h)
}
