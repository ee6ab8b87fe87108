package delivery

// Items puts together what is pending and what the history says.
var Items = items

// Publish tells an event to those who subscribed.
func (s *DeliveryService) Publish(e Event) { s.publish(e) }
