package sqlstore

// Dialect is everything that differs between databases.
type Dialect interface {
	Syntax
	Conn
	Native
}
