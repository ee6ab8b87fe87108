// Package s3 runs the s3 handler against a real server of the S3 protocol, versitygw, in this
// process. It has tests only.
package s3
