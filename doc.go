// Package delivery delivers reports, data exports, audit events or any other object to webhooks and
// other destinations, and records what became of each. A host embeds it with its own database
// connection and its own scheduler loop.
//
// [New] makes a [DeliveryService] from the host's *sql.DB or *sqlx.DB and from handlers, one for
// each type of destination. An [Org] holds everything that one organization owns.
// [Org.Destinations] manages where deliveries go. [Org.Deliver] accepts a payload, and
// [Org.DeliverTx] does so in the host's own transaction. [Org.Status] says what has become of a
// delivery. [DeliveryService.ProcessDue] makes the attempts that are due; [DeliveryService.Run]
// makes them continuously.
//
// Delivery is at least once. An item ends delivered, dead with a reason, or cancelled; nothing is
// dropped, and every attempt is on record. Package handler is the interface for types of
// destinations. Package deliverytest is for a host's tests.
package delivery
