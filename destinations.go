package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// Destinations manages an organization's destinations.
type Destinations struct{ o *Org }

// Destinations returns the organization's destinations.
func (o *Org) Destinations() *Destinations { return &Destinations{o} }

const (
	maxLabel    = 200 // bytes
	maxFallback = 100
)

// Create stores a new destination. Everything that is wrong with spec is one
// [*destination.ValidationError]. Secrets without keys to seal them are [ErrNoKeys].
func (d *Destinations) Create(ctx context.Context, spec destination.Spec) (*destination.Destination, error) {
	if err := d.o.authorize(ctx, access.WriteDestinations); err != nil {
		return nil, err
	}
	row, config, err := d.specify(spec)
	if err != nil {
		return nil, err
	}
	return d.insert(ctx, row, config)
}

func (d *Destinations) insert(
	ctx context.Context, row *sqlstore.DestinationRow, config any,
) (*destination.Destination, error) {
	if err := d.o.s.configs.Seal(ctx, row, config); err != nil {
		return nil, err
	}
	err := d.o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.InsertDestination(ctx, row)
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		stored, err := tx.Destination(ctx, row.Organization, row.ID)
		return stored != nil, err
	}})
	if err != nil {
		return nil, err
	}
	row.Health.Status = destination.Healthy
	d.changed(row, event.DestinationCreated, "")
	return &row.Destination, nil
}

// changed publishes what was done to a destination.
func (d *Destinations) changed(row *sqlstore.DestinationRow, kind event.Kind, reason string) {
	d.o.s.bus.Publish(
		event.Event{Kind: kind, Organization: d.o.name, Destination: row.ID, Version: row.Version, Reason: reason},
	)
}

// Duplicate creates a copy of a destination with its credentials and signing secrets. The copy is
// disabled and not a default, so that nothing is delivered twice before a person has looked at it.
// Default label: the old one with " (copy)" after it.
func (d *Destinations) Duplicate(ctx context.Context, id, label string) (*destination.Destination, error) {
	row, err := d.get(ctx, id, access.WriteDestinations)
	if err != nil {
		return nil, err
	}
	raw, err := d.o.s.configs.Raw(ctx, row)
	if err != nil {
		return nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	if label == "" {
		const suffix = " (copy)"
		label = strings.ToValidUTF8(row.Label[:min(len(row.Label), maxLabel-len(suffix))], "") + suffix
	}
	copied, config, err := d.specify(destination.Spec{
		Label:        label,
		Description:  row.Description,
		Icon:         row.Icon,
		Instructions: row.Instructions,
		Config:       destination.As(row.Type, raw),
		Tags:         row.Tags,
		Disabled:     true,
		Limits:       row.Limits,
		Retry:        row.Retry,
		Breaker:      row.Breaker,
	})
	if err != nil {
		return nil, err
	}
	return d.insert(ctx, copied, config)
}

// Get returns a destination with its secrets redacted.
func (d *Destinations) Get(ctx context.Context, id string) (*destination.Destination, error) {
	row, err := d.get(ctx, id, access.ReadDestinations)
	if err != nil {
		return nil, err
	}
	return &row.Destination, nil
}

func (d *Destinations) get(
	ctx context.Context, id string, action access.Action,
) (row *sqlstore.DestinationRow, err error) {
	if err := d.o.authorize(ctx, action); err != nil {
		return nil, err
	}
	defer d.o.watch(ctx, action, &err)
	canonical, ok := sqlstore.CanonicalID(id)
	if !ok {
		return nil, notFound("destination", id)
	}
	err = d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		row, err = tx.Destination(ctx, d.o.name, canonical)
		return err
	})
	if err == nil && (row == nil || row.Deleted) {
		err = notFound("destination", id)
	}
	return row, err
}

// Page is one page of a list. Next is the cursor of the next page, "" on the last one.
type Page[T any] struct {
	Items []T
	Next  string
}

const pageSize = 100

// DestinationFilter selects the destinations that match every field that is set.
type DestinationFilter struct {
	Type     string
	Enabled  *bool // destination.Set(true)
	Default  *bool
	Health   destination.HealthStatus
	Label    string // a part of the label, in upper or lower case
	Tag      string
	Draining *bool // being deleted
}

func (f DestinationFilter) check() error {
	var errs []error
	if problem := badText(f.Type); problem != "" {
		errs = append(errs, destination.Invalid("type", "%s", problem))
	}
	switch f.Health {
	case "", destination.Healthy, destination.Degraded, destination.Unhealthy:
	default:
		errs = append(
			errs,
			destination.Invalid(
				"health", "must be %s, %s or %s", destination.Healthy, destination.Degraded,
				destination.Unhealthy,
			),
		)
	}
	return destination.Within("filter", errors.Join(errs...))
}

func (f DestinationFilter) fits(d *destination.Destination) bool {
	return (f.Health == "" || d.Health.Status == f.Health) && (f.Tag == "" || slices.Contains(d.Tags, f.Tag)) &&
		(f.Draining == nil || *f.Draining != d.DrainingAt.IsZero()) &&
		strings.Contains(strings.ToLower(d.Label), strings.ToLower(f.Label))
}

// List returns the destinations that the filter selects, in the order they were created, 100 a
// page, beginning after the cursor; "" is the start.
func (d *Destinations) List(
	ctx context.Context, f DestinationFilter, cursor string,
) (Page[*destination.Destination], error) {
	var page Page[*destination.Destination]
	if err := d.o.authorize(ctx, access.ReadDestinations); err != nil {
		return page, err
	}
	wrong := f.check()
	if cursor != "" {
		canonical, ok := sqlstore.CanonicalID(cursor)
		if !ok {
			wrong = errors.Join(wrong, badCursor("List"))
		}
		cursor = canonical
	}
	if wrong != nil {
		return page, destination.NewValidationError("list", wrong)
	}
	filter := sqlstore.DestinationFilter{Type: f.Type, Default: f.Default}
	if f.Enabled != nil {
		filter.Disabled = destination.Set(!*f.Enabled)
	}
	for { // the database knows some of the filter
		var rows []*sqlstore.DestinationRow
		err := d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			rows, err = tx.Destinations(ctx, d.o.name, cursor, filter, pageSize+1)
			return err
		})
		if err != nil {
			return Page[*destination.Destination]{}, err
		}
		for _, row := range rows {
			if !f.fits(&row.Destination) {
				continue
			}
			if len(page.Items) == pageSize {
				page.Next = page.Items[pageSize-1].ID
				return page, nil
			}
			page.Items = append(page.Items, &row.Destination)
		}
		if len(rows) <= pageSize {
			return page, nil
		}
		cursor = rows[len(rows)-1].ID
	}
}

// All iterates over the destinations that the filter selects, page by page. An error ends it.
func (d *Destinations) All(ctx context.Context, f DestinationFilter) iter.Seq2[*destination.Destination, error] {
	return func(yield func(*destination.Destination, error) bool) {
		for cursor := ""; ; {
			page, err := d.List(ctx, f, cursor)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if cursor = page.Next; cursor == "" {
				return
			}
		}
	}
}

// Update changes the fields that the patch sets. The result is checked as a whole, as by Create. If
// another change comes first, the patch is applied on top of it, unless it demands a version: then
// the error is [ErrStale]. Enabling a destination resets its failures and its breaker, and releases
// the held items at a bounded rate. Disabling it holds its items.
func (d *Destinations) Update(ctx context.Context, id string, p destination.Patch) (*destination.Destination, error) {
	return d.update(ctx, id, access.WriteDestinations, p, d.apply)
}

// change is what update makes of a row.
type change func(ctx context.Context, row *sqlstore.DestinationRow, p destination.Patch) error

// update applies a change to a destination. If another change overtakes it, it is applied again.
func (d *Destinations) update(
	ctx context.Context, id string, action access.Action, p destination.Patch, apply change,
) (*destination.Destination, error) {
	const tries = 10
	for range tries {
		row, err := d.get(ctx, id, action)
		if err != nil {
			return nil, err
		}
		toggled := p.Disabled != nil && *p.Disabled != row.Disabled
		if err := apply(ctx, row, p); err != nil {
			return nil, err
		}
		row, err = d.save(ctx, row, toggled)
		switch {
		case errors.Is(err, errOvertaken):
			continue
		case err != nil:
			return nil, err
		}
		d.o.s.engine.Wake()
		d.changed(row, event.DestinationUpdated, "")
		switch {
		case toggled && row.Disabled:
			d.changed(row, event.DestinationDisabled, row.DisabledReason)
		case toggled:
			d.changed(row, event.DestinationEnabled, "")
		}
		return &row.Destination, nil
	}
	return nil, fmt.Errorf("%w: other changes of destination %q came first %d times in a row", ErrStale, id, tries)
}

// save stores a changed row, and returns it as it is stored. errOvertaken says that the stored one
// has another version by now.
func (d *Destinations) save(
	ctx context.Context, row *sqlstore.DestinationRow, toggled bool,
) (saved *sqlstore.DestinationRow, err error) {
	err = d.o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		if toggled { // its health is locked first, in the order of an attempt that disables it
			if err := d.o.s.store.SetBreaker(ctx, tx, row, retry.Closed, d.breaker(row)); err != nil {
				return err
			}
		}
		if saved, err = tx.SaveDestination(ctx, row); err == nil && saved == nil {
			err = errOvertaken
		}
		return err
	}, Committed: func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		stored, err := tx.Destination(ctx, row.Organization, row.ID)
		return stored != nil && stored.Version == saved.Version && stored.UpdatedAt.Equal(saved.UpdatedAt), err
	}})
	return saved, err
}

// breaker is the destination's breaker over the service's.
func (d *Destinations) breaker(row *sqlstore.DestinationRow) retry.Breaker {
	return row.Breaker.Or(d.o.s.settings.Policy().Breaker)
}

// errOvertaken rolls back an update that another has overtaken.
var errOvertaken = errors.New("delivery: the destination was changed in the meantime")

// apply puts a patch into row.
func (d *Destinations) apply(ctx context.Context, row *sqlstore.DestinationRow, p destination.Patch) error {
	if p.IfVersion != 0 && p.IfVersion != row.Version {
		return fmt.Errorf("%w: destination %q has version %d, not %d", ErrStale, row.ID, row.Version, p.IfVersion)
	}
	patch(&row.Label, p.Label)
	patch(&row.Description, p.Description)
	patch(&row.Icon, p.Icon)
	patch(&row.Instructions, p.Instructions)
	patch(&row.Tags, p.Tags)
	patch(&row.Subscription, p.Subscription)
	patch(&row.Default, p.Default)
	patch(&row.DefaultTopics, p.DefaultTopics)
	patch(&row.Fallback, p.Fallback)
	if p.Default != nil && !*p.Default && p.DefaultTopics == nil && p.Fallback == nil {
		row.DefaultTopics, row.Fallback = nil, 0
	}
	patch(&row.Disabled, p.Disabled)
	patch(&row.Limits, p.Limits)
	patch(&row.Retry, p.Retry)
	patch(&row.Breaker, p.Breaker)
	if p.Disabled != nil {
		row.DisabledReason, row.DisabledByService = "", false
	}
	wrong := checkFields(&row.Destination)
	if isNil(p.Config) && p.Merge == nil {
		return destination.NewValidationError("destination", wrong)
	}
	if !isNil(p.Config) && p.Merge != nil {
		return destination.NewValidationError("destination", errors.Join(wrong,
			destination.Invalid("config", "Patch has both Config and Merge; give one")))
	}
	return d.reconfigure(ctx, row, wrong, func(stored json.RawMessage) (destination.Config, error) {
		if p.Merge == nil {
			return p.Config, nil
		}
		merged, err := destination.MergePatch(stored, p.Merge)
		return destination.As(row.Type, merged), destination.Within("config", err)
	})
}

// reconfigure replaces the config of row with what change makes of the stored one. wrong is what is
// wrong with other fields.
func (d *Destinations) reconfigure(
	ctx context.Context, row *sqlstore.DestinationRow, wrong error,
	change func(stored json.RawMessage) (destination.Config, error),
) error {
	stored, err := d.o.s.configs.Raw(ctx, row)
	if err != nil {
		return fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	var parsed any
	config, err := change(stored)
	if err == nil {
		parsed, err = d.o.s.configs.Parse(row.Type, config, stored)
	}
	if err := destination.NewValidationError("destination", errors.Join(wrong, err)); err != nil {
		return err
	}
	return d.o.s.configs.Replace(ctx, row, parsed)
}

func patch[T any](field *T, to *T) {
	if to != nil {
		*field = *to
	}
}

// Delete takes a destination out of use; its history stays. pending says what happens to items that
// wait for it. With destination.DrainPending they are delivered first: until then the destination
// is listed, takes no new items, and can be changed; then Maintain deletes it.
func (d *Destinations) Delete(ctx context.Context, id string, pending destination.Pending) error {
	row, err := d.get(ctx, id, access.WriteDestinations)
	if err != nil {
		return err
	}
	if pending < destination.RefusePending || pending > destination.DrainPending {
		return destination.NewValidationError(
			"deletion",
			destination.Invalid("pending", "%d is not a destination.Pending", pending),
		)
	}
	deleted, err := d.remove(ctx, row, pending)
	if err != nil {
		return err
	}
	row.Version = 0 // others may have changed it meanwhile
	if deleted {
		d.changed(row, event.DestinationDeleted, "")
	} else {
		d.changed(row, event.DestinationUpdated, "it is deleted once nothing waits for it")
	}
	return nil
}

// remove deletes a destination, or with destination.DrainPending has it drained first.
func (d *Destinations) remove(
	ctx context.Context, row *sqlstore.DestinationRow, pending destination.Pending,
) (deleted bool, err error) {
	for more := true; more; {
		err := d.o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			deleted, more, err = d.removeIn(ctx, tx, row, pending)
			return err
		}, Committed: sqlstore.Again})
		if err != nil {
			return false, err
		}
	}
	return deleted, nil
}

// removeIn is one transaction of remove. more: items wait that it has not cancelled yet.
func (d *Destinations) removeIn(
	ctx context.Context, tx *sqlstore.Tx, row *sqlstore.DestinationRow, pending destination.Pending,
) (deleted, more bool, err error) {
	if pending == destination.CancelPending {
		waiting, err := d.o.s.store.CancelPending(ctx, tx, d.o.name, "", row.No, queue.DestinationGone)
		if err != nil || waiting > 0 {
			return false, true, err
		}
		return true, false, tx.DeleteDestination(ctx, d.o.name, row.ID)
	}
	waiting, err := d.o.s.store.Pending(ctx, tx, d.o.name, "", row.No, 1)
	switch {
	case err != nil:
		return false, false, err
	case len(waiting) == 0:
		return true, false, tx.DeleteDestination(ctx, d.o.name, row.ID)
	case pending == destination.RefusePending:
		return false, false, ErrInUse
	}
	return false, false, tx.DrainDestination(ctx, d.o.name, row.ID)
}
