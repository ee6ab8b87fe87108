// Package systemtest holds the tests of the service as a whole: what happens to deliveries when
// processes die, connections break, clocks are wrong, tenants are hostile and destinations fail.
// Tests of a single verb of the API stand beside it, in the root.
package systemtest
