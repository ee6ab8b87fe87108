// Package deliverytest is for the tests of a host: the real service, in process and within
// milliseconds, on a database in memory, with a clock that the test moves and destinations that
// follow a script and record what they were given. It needs no PostgreSQL, no network and no
// sleeping.
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
// What is not scripted is the service itself: its queue, its retry policy, its history. So Status,
// Cancel, idempotency keys, DeliverTx (see NewOn) and a host's own handlers beside the scripted
// destinations all work as they do in production. A kit also works in a bubble of testing/synctest,
// where attempts that hang in earnest cost no time either.
//
// Tests import it, and nothing else does: it links modernc.org/sqlite and package testing.
package deliverytest
