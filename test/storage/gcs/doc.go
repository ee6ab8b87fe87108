// Package gcs runs the gcs handler against a server of Google's JSON protocol, fake-gcs-server, in
// this process. It has tests only. The server takes any token and knows little of resumable
// uploads, so what stands before it adds both.
package gcs
