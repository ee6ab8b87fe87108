package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// Type is a registered handler with its optional interfaces, each looked for once; nil where it has
// none. Its methods turn a handler's panic into an error.
type Type struct {
	Name      string
	Handler   handler.Handler
	Parser    handler.ConfigParser
	Params    handler.ParamsParser
	Tester    handler.Tester
	Signer    handler.Signer
	Describer handler.Describer
	Warner    handler.Warner
	Opener    handler.Opener
	Forgetter handler.Forgetter
	Upkeep    handler.Maintainer
	Remover   handler.Remover
}

// NewType looks for the optional interfaces of h, through wrappers too.
func NewType(name string, h handler.Handler) *Type {
	t := &Type{Name: name, Handler: h}
	t.Parser, _ = handler.As[handler.ConfigParser](h)
	t.Params, _ = handler.As[handler.ParamsParser](h)
	t.Tester, _ = handler.As[handler.Tester](h)
	t.Signer, _ = handler.As[handler.Signer](h)
	t.Warner, _ = handler.As[handler.Warner](h)
	t.Describer, _ = handler.As[handler.Describer](h)
	t.Opener, _ = handler.As[handler.Opener](h)
	t.Forgetter, _ = handler.As[handler.Forgetter](h)
	t.Upkeep, _ = handler.As[handler.Maintainer](h)
	t.Remover, _ = handler.As[handler.Remover](h)
	return t
}

// ParseConfig calls the handler's parser. A type without one takes the raw JSON.
func (t *Type) ParseConfig(raw json.RawMessage) (config any, err error) {
	if t.Parser == nil {
		return raw, nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("parsing the config panicked: %v", r)
		}
	}()
	return t.Parser.ParseConfig(raw)
}

// Test has the handler test a connection within timeout. A type without a test is
// errors.ErrUnsupported.
func (t *Type) Test(
	ctx context.Context, timeout time.Duration, req *handler.TestRequest,
) (report *destination.TestReport, err error) {
	if t.Tester == nil {
		return nil, fmt.Errorf("delivery: connections of type %q cannot be tested: %w", t.Name, errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			report, err = nil, fmt.Errorf("delivery: the connection test panicked: %v", r)
		}
	}()
	return t.Tester.Test(ctx, req)
}

// Maintain has the handler clean up after a destination.
func (t *Type) Maintain(ctx context.Context, req *handler.MaintainRequest) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the handler panicked: %v", r)
		}
	}()
	return t.Upkeep.Maintain(ctx, req)
}

// Forget has the handler drop what it keeps for a destination.
func (t *Type) Forget(destination string) (err error) {
	if t.Forgetter == nil {
		return nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the handler panicked: %v", r)
		}
	}()
	t.Forgetter.Forget(destination)
	return nil
}

// Retention asks the handler how long a destination keeps what deliveries wrote, 0 for ever.
func (t *Type) Retention(config any) (keep time.Duration, err error) {
	if t.Remover == nil {
		return 0, nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("asking for the retention panicked: %v", r)
		}
	}()
	return t.Remover.Retention(config), nil
}

// Remove has the handler remove what a delivery wrote. handler.NotRemoved comes with an error.
func (t *Type) Remove(ctx context.Context, req *handler.RemoveRequest) (removal handler.Removal, err error) {
	defer func() {
		if r := recover(); r != nil {
			removal, err = handler.NotRemoved, fmt.Errorf("the handler panicked: %v", r)
		}
	}()
	removal, err = t.Remover.Remove(ctx, req)
	if err == nil && removal == handler.NotRemoved {
		err = errors.New("the handler neither removed it nor said why")
	}
	if err != nil {
		return handler.NotRemoved, err
	}
	return removal, nil
}
