// Package seal encrypts small secrets, the credentials of destinations, for
// storage.
//
// It is envelope encryption: each [Keyring.Seal] draws a new data key,
// encrypts the secret with AES-256-GCM (by Tink), has a [KeyWrapper] encrypt
// the data key, and stores both together with the wrapper's id. The wrapper is
// a key of the host's configuration ([Local]) or its KMS. The first wrapper of
// a [Keyring] seals, all of them open, and [Keyring.Rewrap] moves a value from
// an older wrapper to the first. So every value opens at any time while keys
// rotate.
//
// Both layers are bound to an [AD]: the organization, the destination and the
// version of its configuration. A value copied to another row does not open
// there, even by someone who can write to the database.
//
// # Format
//
// A sealed value describes itself; lengths are big endian.
//
//	1 byte    format version, 1
//	1 byte    length of the key id, 1 to 64
//	n bytes   key id
//	2 bytes   length of the wrapped data key, 1 to 8192
//	n bytes   wrapped data key
//	12 bytes  nonce
//	n bytes   ciphertext, as long as the secret, at most 1 MiB
//	16 bytes  authentication tag
//
// The associated data of both layers has four strings, each after its length in
// 8 bytes: the purpose ("delivery/seal/1/data-key" or
// "delivery/seal/1/secret"), key id, organization, subject. Then comes the
// configuration's version in 8 bytes.
//
// Values at rest outlive releases: version 1 is never changed, and a release
// that writes another one still reads it.
//
// The root package makes the keyring. This package imports Tink's AEAD and the
// standard library.
package seal
