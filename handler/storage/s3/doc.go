// Package s3 delivers payloads to buckets of Amazon S3 and of what speaks its protocol.
//
// What is smaller than a part is one PutObject; what is larger, or of unknown size, is a multipart
// upload whose parts are sent several at a time, each from memory of a bounded pool. Both create
// the object only if there is none (If-None-Match), both carry checksums that the other side
// verifies, and nobody sees an object before it is whole.
//
// The id of a multipart upload is kept as a checkpoint before the first part is sent. The next
// attempt, in whichever process, asks the other side which parts it has, reads the payload from the
// start, and sends those parts that are missing or whose checksum differs. An upload whose item has
// died is aborted by Maintain, or by a lifecycle rule of the bucket, which is worth having in any
// case.
//
// The permissions that a destination needs are s3:PutObject, and for a repeated attempt, a resumed
// upload and the connection test s3:GetObject, s3:ListBucket (without it a missing object is
// answered as denied), s3:ListMultipartUploadParts, s3:AbortMultipartUpload and s3:DeleteObject.
//
// The service's own credentials are lent to no destination unless the host says so:
// WithDefaultCredentials, WithCredentials or WithWebIdentityToken.
package s3
