package sqlstore

// Dialect is how databases differ. The statements of the queue that differ are in package
// queuestore.
type Dialect interface {
	Syntax
	Conn
}
