package sqlstore_test

import (
	"context"
	"database/sql"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// open returns a store on a database of its own.
func open(t *testing.T) *sqlstore.Store {
	t.Helper()
	db, err := sql.Open("sqlite", dbtest.SQLite(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	svc, err := delivery.New(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sqlstore.New(db, sqlite.Dialect{}, nil)
}

// A destination that is saved stays as it was for its caller, so that the transaction can run
// again.
func TestSaveDestinationLeavesItsArgumentAlone(t *testing.T) {
	t.Parallel()
	s := open(t)
	d := &sqlstore.DestinationRow{Destination: destination.Destination{
		Organization: "acme", ID: "00000000-0000-7000-8000-000000000001", Type: "x", Label: "old", Config: []byte(`{"a":1}`),
	}}
	commit(t, s, func(ctx context.Context, tx *sqlstore.Tx) error { return tx.InsertDestination(ctx, d) })
	d.Label = "new"
	var saved *sqlstore.DestinationRow
	runs := 0
	commit(t, s, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		if saved, err = tx.SaveDestination(ctx, d); err == nil && runs == 0 {
			err = sqlstore.ErrConcurrent
		}
		runs++
		return err
	})
	if runs != 2 || d.Version != 1 || saved == nil || saved.Version != 2 || saved.UpdatedAt.Equal(d.UpdatedAt) {
		t.Fatalf("after %d runs it is %+v, saved as %+v", runs, d, saved)
	}
	stored := read(t, s, d.ID)
	if stored.Label != "new" || stored.Version != 2 || !stored.UpdatedAt.Equal(saved.UpdatedAt) {
		t.Errorf("stored is %+v", stored)
	}
	commit(t, s, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		saved, err = tx.SaveDestination(ctx, d)
		return err
	})
	if saved != nil {
		t.Errorf("version 1 was saved over version 2: %+v", saved)
	}
}

// The config is written where its version says that it has changed, and nowhere else.
func TestSaveDestinationWritesAChangedConfig(t *testing.T) {
	t.Parallel()
	s := open(t)
	d := &sqlstore.DestinationRow{Sealed: []byte("old"), Destination: destination.Destination{
		Organization: "acme", ID: "00000000-0000-7000-8000-000000000001", Type: "x", Config: []byte(`{"a":1}`),
	}}
	save := func() {
		t.Helper()
		commit(t, s, func(ctx context.Context, tx *sqlstore.Tx) error {
			saved, err := tx.SaveDestination(ctx, d)
			if err == nil && saved == nil {
				t.Error("it was not saved")
			}
			return err
		})
	}
	commit(t, s, func(ctx context.Context, tx *sqlstore.Tx) error { return tx.InsertDestination(ctx, d) })
	d.Config, d.Sealed = []byte(`{"a":2}`), []byte("new")
	save()
	if got := read(t, s, d.ID); string(got.Config) != `{"a":1}` || string(got.Sealed) != "old" || got.ConfigVersion != 1 {
		t.Errorf("a config of the same version was written: %+v", got)
	}
	d.Version = 2
	d.ConfigVersion = d.NextVersion()
	save()
	if got := read(t, s, d.ID); string(got.Config) != `{"a":2}` || string(got.Sealed) != "new" || got.ConfigVersion != 3 {
		t.Errorf("a config of the next version was not written: %+v", got)
	}
}

func commit(t *testing.T, s *sqlstore.Store, do func(ctx context.Context, tx *sqlstore.Tx) error) {
	t.Helper()
	if err := s.Commit(t.Context(), sqlstore.Commit{Do: do}); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *sqlstore.Store, id string) (d *sqlstore.DestinationRow) {
	t.Helper()
	err := s.Read(t.Context(), func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		d, err = tx.Destination(ctx, "acme", id)
		return err
	})
	if err != nil || d == nil {
		t.Fatal(d, err)
	}
	return d
}
