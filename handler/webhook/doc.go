// Package webhook delivers payloads to HTTP endpoints, signed as Standard Webhooks describes
// (https://www.standardwebhooks.com), and verifies such requests for those who receive them.
//
// A host registers New with delivery.WithHandler and creates destinations with a Config. Each
// attempt is one request:
//
//	POST /hook HTTP/1.1
//	Content-Type: application/json
//	Idempotency-Key: 01976c2e-...             the message id: the same in all attempts
//	Webhook-Id: 01976c2e-...                  the same
//	Webhook-Timestamp: 1782036000             of this attempt, in Unix seconds
//	Webhook-Signature: v1,K5oZ... v1a,9aXc... one signature per secret, the newest first
//	X-Delivery-Timestamp: 2026-06-21T10:00:00Z
//
// with Content-Disposition where the payload has a file name, X-Delivery-Topic where the request
// has a topic, and Traceparent where the caller has a trace. X-Delivery-Test: true marks what is no
// event: a sample, and the request of a connection test. A payload of up to 1 MiB is sent from
// memory; a larger one is read twice, first for the signature and then to be sent, in constant
// memory; v1a alone holds it as a whole, up to 10 MiB.
//
// Any 2xx answer means delivered; handler.FromHTTP lists the others. Redirects are refused, not
// followed: a destination is only where it was configured. What goes wrong below HTTP is transient,
// a refused TLS certificate too, because certificates are mended while the payload waits; only an
// address that the service may not reach is a permanent failure.
//
// The package imports the standard library, golang.org/x/oauth2, and of its siblings handler,
// destination and payload. Receivers use Verify or VerifyRequest, which need neither a service nor
// a database.
package webhook
