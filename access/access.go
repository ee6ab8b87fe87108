// Package access says who calls for an organization and what the caller may do there. A host that
// serves people puts an [Actor] into the context of its calls. Calls without one are the host's own
// and are trusted, unless delivery.WithActorRequired is given. The package imports no other of this
// module.
package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// The errors of an Authorizer, to be compared with errors.Is.
var (
	// ErrDenied: the actor belongs to the organization but may not do this there. The caller sees
	// this error.
	ErrDenied = errors.New("access: denied")
	// ErrForeign: the actor does not belong to the organization. The caller sees
	// delivery.ErrNotFound and learns nothing about the organization.
	ErrForeign = errors.New("access: the actor does not belong to the organization")
)

// Actor is the person or program that a call is made for. The host has authenticated it.
type Actor struct {
	ID    string          // the host's own; security events keep it
	Roles map[string]Role // by organization
}

// Role is the role of an actor in an organization.
type Role string

// The roles that ByRole knows.
const (
	Viewer   Role = "viewer"   // sees destinations and deliveries, but no signing secret and no security event
	Sender   Role = "sender"   // delivers, and follows deliveries
	Operator Role = "operator" // a viewer and sender who also retries, cancels, pauses, tests and enables
	Admin    Role = "admin"    // may do everything
)

// Action is what an actor is about to do.
type Action string

// The actions. Each method of Org and its managers asks for one.
const (
	ReadDeliveries     Action = "deliveries.read"      // status, history, dead letters, explanations, statistics
	Deliver            Action = "deliveries.create"    // accept requests and payloads, replay
	OperateDeliveries  Action = "deliveries.operate"   // retry, cancel, purge
	ReadDestinations   Action = "destinations.read"    // with secrets redacted
	OperateDestination Action = "destinations.operate" // test, sample, enable, disable, pause, set the breaker
	WriteDestinations  Action = "destinations.write"   // create, update, delete, rotate secrets
	ReadSecrets        Action = "destinations.secrets" // signing secrets in clear
	OperateQueue       Action = "queue.operate"        // pause and resume all of the organization's
	ReadSecurity       Action = "security.read"        // security events
)

// Authorizer decides what an actor may do in an organization. It returns nil to permit an action
// and [ErrDenied] or [ErrForeign], possibly wrapped, to refuse it. Any other error means that it
// could not decide; then the call fails too. It is asked at each call, by many goroutines at once.
type Authorizer interface {
	Authorize(ctx context.Context, actor Actor, organization string, action Action) error
}

var reads = []Action{ReadDeliveries, ReadDestinations}

var permitted = map[Role][]Action{
	Viewer:   reads,
	Sender:   append([]Action{Deliver}, reads...),
	Operator: append([]Action{Deliver, OperateDeliveries, OperateDestination, OperateQueue}, reads...),
	Admin: append([]Action{
		Deliver, OperateDeliveries, OperateDestination, OperateQueue, WriteDestinations, ReadSecrets, ReadSecurity,
	}, reads...),
}

// ByRole decides by Actor.Roles and the roles of this package alone. An unknown role permits
// nothing.
func ByRole() Authorizer { return byRole{} }

type byRole struct{}

func (byRole) Authorize(_ context.Context, actor Actor, organization string, action Action) error {
	role, ok := actor.Roles[organization]
	if !ok {
		return ErrForeign
	}
	if !slices.Contains(permitted[role], action) {
		return fmt.Errorf("%w: the role %q does not permit %s", ErrDenied, role, action)
	}
	return nil
}

type key struct{}

// WithActor returns a context. Calls with it are made for the actor.
func WithActor(ctx context.Context, actor Actor) context.Context {
	actor.Roles = maps.Clone(actor.Roles)
	return context.WithValue(ctx, key{}, actor)
}

// ActorFrom returns the actor that WithActor put into ctx.
func ActorFrom(ctx context.Context) (Actor, bool) {
	a, ok := ctx.Value(key{}).(Actor)
	return a, ok
}
