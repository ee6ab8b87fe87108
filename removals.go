package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/wiring"
)

const (
	removalsAtOnce = 8
	mostProblem    = 500 // bytes
)

// remove has handlers remove what was written at destinations whose retention of it is over, as far as the time of the
// lease goes.
func (s *DeliveryService) remove(ctx context.Context, chores *Chores) error {
	var errs []error
	for _, name := range s.typeNames() {
		t := s.settings.Types[name]
		if t.Remover == nil {
			continue
		}
		errs = append(errs, s.outside(ctx, "removals of "+name, time.Hour, func(ctx context.Context) error {
			return s.removeOfType(ctx, t, chores)
		}))
	}
	return errors.Join(errs...)
}

func (s *DeliveryService) removeOfType(ctx context.Context, t *wiring.Type, chores *Chores) error {
	for after := int64(0); ; {
		var page []*sqlstore.Destination
		err := s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			page, err = tx.DestinationsOfType(ctx, t.Name, after, pageSize)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, d := range page {
			after = d.No
			if err := s.removeOf(ctx, t, d, chores); err != nil {
				s.settings.Logger.WarnContext(ctx, "delivery: what a destination is to keep no longer could not be removed; it is tried again in an hour",
					"organization", d.Organization, "destination", d.ID, "type", d.Type, "error", err)
			}
		}
	}
}

// removeOf removes what is due of one destination. What fails is passed over until the next time.
func (s *DeliveryService) removeOf(ctx context.Context, t *wiring.Type, d *sqlstore.Destination, chores *Chores) error {
	config, err := engine.OpenConfig(ctx, s.settings.Keys, t, d)
	if err != nil {
		return err
	}
	keep := t.Remover.Retention(config)
	if keep <= 0 {
		return nil
	}
	var after sqlstore.Written
	var failed error
	for {
		var due []sqlstore.Written
		err := s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			due, err = tx.WrittenBefore(ctx, d.No, tx.Now.Add(-keep), after, pageSize)
			return err
		})
		if err != nil || len(due) == 0 {
			return errors.Join(failed, err)
		}
		after = due[len(due)-1]
		var group errgroup.Group
		group.SetLimit(removalsAtOnce)
		for i := range due {
			group.Go(func() error {
				s.removeOne(ctx, t, d, config, &due[i])
				return nil
			})
		}
		_ = group.Wait()
		if ctx.Err() != nil {
			return ctx.Err() // what was removed is found missing the next time
		}
		err = s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			for _, w := range due {
				if err := tx.NoteRemoval(ctx, w); err != nil {
					return err
				}
			}
			return nil
		}, sqlstore.Again)
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, w := range due {
			if w.Removal == handler.NotRemoved {
				chores.RemovalsFailed++
				failed = errors.New(w.Problem)
			} else {
				chores.Removals++
			}
		}
	}
}

// removeOne notes what the handler says in w.
func (s *DeliveryService) removeOne(ctx context.Context, t *wiring.Type, d *sqlstore.Destination, config any, w *sqlstore.Written) {
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("the handler panicked: %v", r)
			}
		}()
		w.Removal, err = t.Remover.Remove(ctx, &handler.RemoveRequest{
			Organization: w.Organization, DestinationID: d.ID, DeliveryID: w.Delivery, ItemID: engine.ItemID(w.Delivery, w.N),
			Config: config, Reference: w.Reference, WrittenAt: w.WrittenAt,
		})
		if err == nil && w.Removal == handler.NotRemoved {
			err = errors.New("the handler neither removed it nor said why")
		}
		return err
	}()
	if err != nil {
		w.Removal, w.Problem = handler.NotRemoved, engine.Clean(err.Error(), mostProblem)
	}
}
