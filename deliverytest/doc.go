// Package deliverytest runs the real service in a host's tests: in process, within milliseconds and
// on a database in memory. The test moves the clock, and destinations follow a script and record
// what they receive. It needs no PostgreSQL, no network and no sleeping.
//
//	func TestReportSurvivesAnOutage(t *testing.T) {
//		kit := deliverytest.New(t)
//		siem := kit.Destination("acme", deliverytest.Fail(errors.New("no route")), deliverytest.OK())
//
//		report(kit.DeliveryService) // the host's code: svc.Org("acme").Deliver(...)
//
//		kit.Process()                 // the first attempt fails
//		siem.RequireAttempts(1)
//		kit.Advance(time.Minute)    // the retry, at its own moment
//		siem.RequireDelivered(1)
//	}
//
// Only destinations are scripted. The queue, the retry policy and the history are those of the
// service, so Status, Cancel, idempotency keys, DeliverTx (see [NewOn]) and a host's own handlers
// work as they do in production. A [Kit] also works in a bubble of [testing/synctest], where even
// attempts that really hang take no time.
//
// Only tests should import the package: it links modernc.org/sqlite and package testing.
package deliverytest
