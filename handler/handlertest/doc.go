// Package handlertest is the conformance suite that every handler runs, the library's own and a
// host's:
//
//	func TestConformance(t *testing.T) {
//		handlertest.Run(t, handlertest.Harness{
//			New:  func() handler.Handler { return mine.New() },
//			Peer: startPeer, // the other side, and a config that leads to it
//			...
//		})
//	}
//
// Whatever a handler cannot do is a field of its Harness that says so: the suite leaves nothing out
// in silence. For tests of a handler's own subjects, Open, Parse and Request do what the service
// does before an attempt.
//
// The package may import everything that a service is made of, and is imported by tests only.
package handlertest
