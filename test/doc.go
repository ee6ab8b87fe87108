// Package test holds the tests of the library against real peers and
// emulators: object storage, mail and SFTP servers, signature verifiers that
// others wrote, faults in the network.
//
// It is a module of its own, because those bring hundreds of modules that must
// not enter the go.mod of whoever imports the library. Nothing imports it.
package test
