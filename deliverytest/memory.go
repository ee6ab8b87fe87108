package deliverytest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/deliverykit/delivery"
)

// migrated is the image of a migrated, empty database. It is the same for every kit, and copying it
// is far cheaper than making it.
var migrated = sync.OnceValues(func() (image []byte, err error) {
	db, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	svc, err := delivery.New(db)
	if err != nil {
		return nil, err
	}
	if err := svc.Migrate(context.Background()); err != nil {
		return nil, err
	}
	err = raw(db, func(conn any) (err error) {
		s, ok := conn.(interface{ Serialize() ([]byte, error) })
		if !ok {
			return fmt.Errorf("a %T cannot serialize", conn)
		}
		image, err = s.Serialize()
		return err
	})
	return image, err
})

// inMemory returns a new copy of the migrated database.
func inMemory() (*sql.DB, error) {
	image, err := migrated()
	if err != nil {
		return nil, err
	}
	db, err := open()
	if err != nil {
		return nil, err
	}
	err = raw(db, func(conn any) error {
		d, ok := conn.(interface{ Deserialize(image []byte) error })
		if !ok {
			return fmt.Errorf("a %T cannot deserialize", conn)
		}
		return d.Deserialize(image)
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// open opens an empty database in memory. The database lives in its only connection, which stays
// open: the pool closes no idle connection, and the driver keeps one in memory even after its
// statement was interrupted.
func open() (*sql.DB, error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func raw(db *sql.DB, f func(conn any) error) (err error) {
	conn, err := db.Conn(context.Background())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return conn.Raw(f)
}
