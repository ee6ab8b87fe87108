package delivery

import (
	"context"
	"errors"
	"fmt"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/internal/audit"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Org returns the service as one organization sees it: everything it owns, and nothing else. The
// call costs nothing and does not fail; with an unusable name each method of the Org returns
// [ErrOrganization].
func (s *DeliveryService) Org(organization string) *Org { return &Org{s: s, name: organization} }

// Org is one organization's view of the service. An id of another organization is [ErrNotFound].
type Org struct {
	s    *DeliveryService
	name string
}

const maxName = 200 // bytes

// usable checks the organization's name, and that the service is open.
func (o *Org) usable() error {
	if err := o.s.open(); err != nil {
		return err
	}
	if o.name == "" {
		return fmt.Errorf("%w: it is empty", ErrOrganization)
	}
	if len(o.name) > maxName {
		return fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrOrganization, len(o.name), maxName)
	}
	if problem := badText(o.name); problem != "" {
		return fmt.Errorf("%w: it %s", ErrOrganization, problem)
	}
	return nil
}

// authorize is the first thing that every method of Org and its managers does: it checks the
// organization's name and that the caller may do the action.
func (o *Org) authorize(ctx context.Context, action access.Action) error {
	return o.permit(ctx, action, false)
}

// permit is authorize. With inTx, for a call in a host's transaction, it asks for no other
// connection.
func (o *Org) permit(ctx context.Context, action access.Action, inTx bool) error {
	if err := o.usable(); err != nil {
		return err
	}
	actor, ok := access.ActorFrom(ctx)
	if !ok {
		if o.s.settings.ActorRequired {
			return fmt.Errorf("%w: the context has no actor; see access.WithActor", access.ErrDenied)
		}
		return nil
	}
	err := o.s.settings.Authorizer.Authorize(ctx, actor, o.name, action)
	refused := audit.Event{Organization: o.name, Actor: actor.ID, Action: string(action)}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, access.ErrForeign):
		refused.Kind = string(ForeignActor)
		err = fmt.Errorf("%w: organization %q", ErrNotFound, o.name)
	case errors.Is(err, access.ErrDenied):
		refused.Kind = string(DeniedActor)
	default:
		return fmt.Errorf("delivery: the authorizer could not decide: %w", err)
	}
	o.s.audit.Note(ctx, refused, inTx)
	return err
}

// watch records a security event for each id in *err that was not found because it is another
// organization's.
func (o *Org) watch(ctx context.Context, action access.Action, err *error) {
	o.watchIn(ctx, nil, action, *err)
}

// watchIn is watch in a host's transaction, nil for none.
func (o *Org) watchIn(ctx context.Context, host *sqlstore.Tx, action access.Action, err error) {
	for _, missing := range missingIn(err, nil) {
		canonical, ok := sqlstore.CanonicalID(missing.id)
		if !ok {
			continue
		}
		owner, err := o.s.audit.Owner(ctx, host, missing.kind, canonical)
		if err != nil {
			o.s.settings.Logger.WarnContext(ctx,
				"delivery: the service could not find out whether an id is another organization's", "error", err)
			continue
		}
		if owner == "" || owner == o.name {
			continue
		}
		actor, _ := access.ActorFrom(ctx)
		o.s.audit.Note(ctx, audit.Event{
			Kind: string(ForeignID), Organization: owner, From: o.name, Actor: actor.ID, Action: string(action),
			Subject: missing.kind, SubjectID: canonical,
		}, host != nil)
	}
}

// missingIn collects the errors for ids that were not found.
func missingIn(err error, all []*notFoundError) []*notFoundError {
	switch e := err.(type) { //nolint:errorlint // this walks the tree itself, one node at a time
	case nil:
	case *notFoundError:
		all = append(all, e)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			all = missingIn(inner, all)
		}
	case interface{ Unwrap() error }:
		all = missingIn(e.Unwrap(), all)
	}
	return all
}

func (o *Org) detailsURL(id string) string {
	if f := o.s.settings.DetailsURL; f != nil {
		return f(o.name, id)
	}
	return ""
}
