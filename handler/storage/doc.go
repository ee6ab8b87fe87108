// Package storage delivers payloads as objects: what its drivers have in common. A driver is a
// package of its own, with one SDK at most and a handler that a host registers, such as
// handler/storage/s3 and handler/storage/local. Who writes another driver implements Bucket and
// calls Target.Deliver and Target.Test.
//
// An object's name comes of a template over what is known of the item, and is the same in all
// attempts. An object is created only if there is none of its name, so a repeated attempt makes no
// second one: if the same content is there already, the item is delivered, and if another content
// is, it fails with handler.Conflict and nothing is lost. Readers never see half an object.
//
// The package imports the standard library, golang.org/x/text for the normal form of names, and of
// its siblings handler, destination and payload.
package storage
