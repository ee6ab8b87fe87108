// Package webhook has verifiers that others wrote check what the webhook handler really sends over
// HTTP: the Go library of Standard Webhooks, and standardwebhooks and svix from npm. It has tests
// only. They need Node.js and npm, which the set-up of "make test" installs.
package webhook
