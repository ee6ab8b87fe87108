// Package azure delivers payloads to containers of Azure Blob Storage, as block blobs.
//
// What is smaller than a block is one Put Blob; what is larger, or of unknown size, is staged in
// blocks, several at a time, each from memory of a bounded pool, and committed when it has ended
// well. Both create the blob only if there is none (If-None-Match), each block carries a CRC-64
// that the other side verifies, and nobody sees a blob before it is whole.
//
// A block's id is made of its number and its checksum, and the size of blocks is kept as a
// checkpoint before the first one is sent. The next attempt, in whichever process, asks the other
// side which blocks it has, reads the payload from the start, and sends those that are missing.
// Blocks whose item has died are dropped by the service after a week, so there is nothing for
// Maintain to do.
//
// A destination needs the data actions blobs/write and blobs/read, and for the connection test and
// for retention blobs/delete, as in the role Storage Blob Data Contributor; tags need
// blobs/tags/write, as in Storage Blob Data Owner. A shared access signature needs create, write,
// read, delete and, for tags, tag permissions (sp=racwdt).
//
// The service's own identity is lent to no destination unless the host says so:
// WithManagedIdentity, WithDefaultCredentials or WithCredential. Its tokens go to Microsoft's
// addresses only, and to those that the host names.
package azure
