// Package delivery delivers reports, data exports, audit events or any object to webhooks and other
// destinations, and knows what became of each. A host embeds it with its own database connection
// and its own scheduler loop.
//
// New makes a DeliveryService of the host's *sql.DB or *sqlx.DB and of handlers, one for each type
// of destination. An Org is all that one organization owns: Destinations says where to, Deliver
// accepts a payload, DeliverTx does so in the host's own transaction, Status tells what became of
// it. ProcessDue makes the attempts that are due, Run makes them continuously.
//
// Delivery is at least once: an item ends delivered, as a dead letter with a reason, or cancelled;
// nothing is dropped, and every attempt is on record. Package handler is the seam for types of
// destinations, package deliverytest is for a host's tests.
package delivery
