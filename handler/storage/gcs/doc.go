// Package gcs delivers payloads to buckets of Google Cloud Storage.
//
// What is smaller than a chunk is one request; what is larger, or of unknown size, is a resumable
// upload, whose chunks are sent one after another, as the protocol wants it
// (https://docs.cloud.google.com/storage/docs/resumable-uploads). Both create the object only if
// there is none (ifGenerationMatch=0), both carry a CRC-32C that the other side verifies before
// anybody can see the object.
//
// The address of a resumable upload is kept as a checkpoint before the first chunk is sent. The
// next attempt, in whichever process, asks the other side how far it got, reads the payload from
// the start, and sends the rest. Whoever knows the address can go on with that one upload, for a
// week; it is good for nothing else. After that week the service drops it, and there is no list of
// such uploads, so there is nothing for Maintain to do.
//
// A destination needs storage.objects.create, and for a repeated attempt, the connection test and
// retention storage.objects.get and storage.objects.delete, as in the role Storage Object User.
//
// The service's own credentials are lent to no destination unless the host says so:
// WithDefaultCredentials or WithCredentials. Their tokens go to Google's addresses only, and to
// those that the host names.
package gcs
