package delivery

import "github.com/deliverykit/delivery/event"

// Items puts together what is pending and what the history says.
var Items = items

// Publish passes an event on to subscribers.
func (s *DeliveryService) Publish(e event.Event) { s.bus.Publish(e) }
