package delivery

import (
	"context"
	"slices"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Subscribe returns the events of all organizations from now on, until ctx ends or the service is
// closed; then the channel is closed. A subscriber that is 256 events behind misses some, and the
// next event says how many: the service never waits for it.
func (s *DeliveryService) Subscribe(ctx context.Context, f event.Filter) <-chan event.Event {
	f = canonical(f)
	return s.bus.Subscribe(ctx, f.Match)
}

// Subscribe returns the organization's events, as [DeliveryService.Subscribe] does. For an actor
// who may not read the organization's destinations the channel is closed at once. An actor who may
// not read security events gets no event.SecurityNoted, and one who may not read deliveries no
// event.ItemProgress. Rights are checked once, at the beginning.
func (o *Org) Subscribe(ctx context.Context, f event.Filter) <-chan event.Event {
	if err := o.authorize(ctx, access.ReadDestinations); err != nil {
		ch := make(chan event.Event)
		close(ch)
		return ch
	}
	f = canonical(f)
	denied := o.deniedEvents(ctx)
	return o.s.bus.Subscribe(ctx, func(e event.Event) bool {
		return e.Organization == o.name && f.Match(e) && !slices.Contains(denied, e.Kind)
	})
}

func (o *Org) deniedEvents(ctx context.Context) (denied []event.Kind) {
	actor, person := access.ActorFrom(ctx)
	if !person {
		return nil
	}
	for kind, right := range map[event.Kind]access.Action{
		event.SecurityNoted: access.ReadSecurity, event.ItemProgress: access.ReadDeliveries,
	} {
		if o.s.settings.Authorizer.Authorize(ctx, actor, o.name, right) != nil {
			denied = append(denied, kind)
		}
	}
	return denied
}

// canonical is a filter with its destination as ids are stored.
func canonical(f event.Filter) event.Filter {
	if id, ok := sqlstore.CanonicalID(f.Destination); ok {
		f.Destination = id
	}
	return f
}
