package delivery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/wiring"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// Destinations manages an organization's destinations.
type Destinations struct{ o *Org }

// Destinations returns the organization's destinations.
func (o *Org) Destinations() *Destinations { return &Destinations{o} }

const mostConfig = 256 << 10

// Create stores a new destination. All that is wrong with it is one *destination.ValidationError; secrets without keys
// to seal them are ErrNoKeys.
func (d *Destinations) Create(ctx context.Context, spec destination.Spec) (*destination.Destination, error) {
	if err := d.o.check(); err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	row := &sqlstore.Destination{ConfigVersion: 1}
	row.Organization, row.ID = d.o.name, id.String()
	row.Label, row.Description, row.Icon, row.Instructions = spec.Label, spec.Description, spec.Icon, spec.Instructions
	row.Tags, row.Default, row.Disabled, row.Limits, row.Retry, row.Breaker = spec.Tags, spec.Default, spec.Disabled, spec.Limits, spec.Retry, spec.Breaker
	var config any
	if isNil(spec.Config) {
		err = destination.Require("config", "")
	} else {
		row.Type = spec.Config.DestinationType()
		config, err = d.parse(row.Type, spec.Config, nil)
	}
	if err := destination.NewValidationError("destination", errors.Join(check(&row.Destination), err)); err != nil {
		return nil, err
	}
	if err := d.seal(ctx, row, config); err != nil {
		return nil, err
	}
	err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.InsertDestination(ctx, row)
	}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		stored, err := tx.Destination(ctx, row.Organization, row.ID)
		return stored != nil, err
	})
	if err != nil {
		return nil, err
	}
	return &row.Destination, nil
}

func (d *Destinations) typ(name string) *wiring.Type { return d.o.s.settings.Types[name] }

func (d *Destinations) unknownType(name string) error {
	return &destination.FieldError{Path: "type", Code: "unknown",
		Message: fmt.Sprintf("there is no handler for %q; register one with delivery.WithHandler (there are: %q)", name, d.o.s.typeNames())}
}

// parse has the handler check and complete a config, and returns what is to be stored. stored is the config so far, nil
// if there is none: what is redacted in config stands for what it has there.
func (d *Destinations) parse(typ string, config destination.Config, stored json.RawMessage) (any, error) {
	t := d.typ(typ)
	if t == nil {
		return nil, d.unknownType(typ)
	}
	raw, err := normalize(typ, config)
	if err == nil && stored != nil {
		raw, err = destination.FillRedacted(raw, stored)
	}
	if err != nil || t.Parser == nil {
		return raw, destination.Within("config", err)
	}
	parsed, err := engine.ParseConfig(t, raw)
	if err == nil && t.Completer != nil {
		var before any
		if stored != nil {
			before, _ = engine.ParseConfig(t, stored) // one that is no longer valid has nothing to keep
		}
		parsed, err = t.Completer.Complete(parsed, before)
	}
	if err == nil {
		_, err = destination.Reveal(parsed) // no placeholder is left
	}
	return parsed, destination.Within("config", err)
}

// normalize gives a config the form it is parsed from.
func normalize(typ string, config destination.Config) (json.RawMessage, error) {
	if t := config.DestinationType(); t != typ {
		return nil, destination.Invalid("", "is of type %q, the destination of type %q", t, typ)
	}
	raw, err := destination.Raw(config)
	switch {
	case err != nil:
		return nil, err
	case len(raw) > mostConfig:
		return nil, destination.Invalid("", "has %d bytes, at most %d are allowed", len(raw), mostConfig)
	case bytes.Contains(raw, []byte(`\u0000`)):
		return nil, destination.Invalid("", "contains a NUL character")
	}
	return raw, nil
}

// seal puts the redacted form of a parsed config into row and, if it has secrets, the sealed one.
func (d *Destinations) seal(ctx context.Context, row *sqlstore.Destination, config any) error {
	revealed, err := destination.Reveal(config)
	if err != nil {
		return err
	}
	if row.Config, err = json.Marshal(config); err != nil {
		return err
	}
	row.Sealed = nil
	if bytes.Equal(revealed, row.Config) {
		return nil
	}
	if d.o.s.settings.Keys == nil {
		return ErrNoKeys
	}
	if row.Sealed, err = d.o.s.settings.Keys.Seal(ctx, revealed, engine.Binding(row)); err != nil {
		return fmt.Errorf("delivery: sealing the config: %w", err)
	}
	return nil
}

// lines takes out the control characters that longer texts may have.
var lines = strings.NewReplacer("\n", "", "\r", "", "\t", "")

// check checks what does not depend on the type.
func check(d *destination.Destination) error {
	var errs []error
	text := func(path, value string, most int, multiline bool) {
		if multiline {
			value = lines.Replace(value)
		}
		if len(value) > most {
			errs = append(errs, destination.Invalid(path, "has %d bytes, at most %d are allowed", len(value), most))
		}
		if problem := badText(value); problem != "" {
			errs = append(errs, destination.Invalid(path, "%s", problem))
		}
	}
	errs = append(errs, destination.Require("label", d.Label))
	text("label", d.Label, 200, false)
	text("description", d.Description, 10_000, true)
	text("instructions", d.Instructions, 100_000, true)
	text("icon", d.Icon, 2000, false)
	if u, err := url.Parse(d.Icon); d.Icon != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "") {
		errs = append(errs, destination.Invalid("icon", "is not an http or https URL"))
	}
	if len(d.Tags) > mostTags {
		errs = append(errs, destination.Invalid("tags", "has %d tags, at most %d are allowed", len(d.Tags), mostTags))
	}
	for i, tag := range d.Tags {
		text(fmt.Sprintf("tags[%d]", i), tag, 100, false)
	}
	errs = append(errs, destination.Within("limits", d.Limits.Validate()), destination.Within("retry", d.Retry.Validate()),
		destination.Within("breaker", d.Breaker.Validate()))
	return errors.Join(errs...)
}

// Get returns a destination; its secrets are redacted.
func (d *Destinations) Get(ctx context.Context, id string) (*destination.Destination, error) {
	row, err := d.get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &row.Destination, nil
}

func (d *Destinations) get(ctx context.Context, id string) (row *sqlstore.Destination, err error) {
	if err := d.o.check(); err != nil {
		return nil, err
	}
	canonical, ok := canonicalID(id)
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

// Page is one page of a list. Next is the cursor of the following one, "" on the last.
type Page[T any] struct {
	Items []T
	Next  string
}

const pageSize = 100

// List returns the destinations in the order they were created, 100 a page, from after the cursor; "" is the start.
func (d *Destinations) List(ctx context.Context, cursor string) (Page[*destination.Destination], error) {
	var page Page[*destination.Destination]
	if err := d.o.check(); err != nil {
		return page, err
	}
	if cursor != "" {
		canonical, ok := canonicalID(cursor)
		if !ok {
			return page, destination.NewValidationError("list", destination.Invalid("cursor", "is not one that List returned"))
		}
		cursor = canonical
	}
	var rows []*sqlstore.Destination
	err := d.o.s.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		rows, err = tx.Destinations(ctx, d.o.name, cursor, pageSize+1)
		return err
	})
	if err != nil {
		return page, err
	}
	if len(rows) > pageSize {
		rows = rows[:pageSize]
		page.Next = rows[pageSize-1].ID
	}
	for _, row := range rows {
		page.Items = append(page.Items, &row.Destination)
	}
	return page, nil
}

// Update changes what the patch sets. It is checked as a whole, as by Create. A change that another has overtaken is made
// on top of that, unless the patch demands a version: then it is ErrStale. Enabling a destination resets its
// failures and its breaker, and lets out what was held at a bounded rate; disabling it holds what waits.
func (d *Destinations) Update(ctx context.Context, id string, p destination.Patch) (*destination.Destination, error) {
	const tries = 10
	for range tries {
		row, err := d.get(ctx, id)
		if err != nil {
			return nil, err
		}
		if p.IfVersion != 0 && p.IfVersion != row.Version {
			return nil, fmt.Errorf("%w: destination %q has version %d, not %d", ErrStale, id, row.Version, p.IfVersion)
		}
		toggled := p.Disabled != nil && *p.Disabled != row.Disabled
		if err := d.apply(ctx, row, p); err != nil {
			return nil, err
		}
		before := row.Version
		err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			row.Version = before
			if toggled { // its health is locked before it, as an attempt that disables it does
				if err := tx.SetBreaker(ctx, row, retry.Closed, d.o.s.engine.Breaker(row)); err != nil {
					return err
				}
			}
			updated, err := tx.UpdateDestination(ctx, row)
			if err == nil && !updated {
				err = errOvertaken
			}
			return err
		}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
			stored, err := tx.Destination(ctx, row.Organization, row.ID)
			return stored != nil && stored.Version == row.Version && stored.UpdatedAt.Equal(row.UpdatedAt), err
		})
		switch {
		case errors.Is(err, errOvertaken):
		case err != nil:
			return nil, err
		default:
			d.o.s.engine.Wake()
			return &row.Destination, nil
		}
	}
	return nil, fmt.Errorf("%w: destination %q changes all the time", ErrStale, id)
}

// errOvertaken rolls back an update that another has overtaken.
var errOvertaken = errors.New("delivery: changed meanwhile")

// apply puts a patch into row.
func (d *Destinations) apply(ctx context.Context, row *sqlstore.Destination, p destination.Patch) error {
	patch(&row.Label, p.Label)
	patch(&row.Description, p.Description)
	patch(&row.Icon, p.Icon)
	patch(&row.Instructions, p.Instructions)
	patch(&row.Tags, p.Tags)
	patch(&row.Default, p.Default)
	patch(&row.Disabled, p.Disabled)
	patch(&row.Limits, p.Limits)
	patch(&row.Retry, p.Retry)
	patch(&row.Breaker, p.Breaker)
	if p.Disabled != nil {
		row.DisabledReason = ""
	}
	wrong := check(&row.Destination)
	if isNil(p.Config) && p.Merge == nil {
		return destination.NewValidationError("destination", wrong)
	}
	if !isNil(p.Config) && p.Merge != nil {
		return destination.NewValidationError("destination", errors.Join(wrong,
			destination.Invalid("config", "Patch has both Config and Merge; give one")))
	}
	stored, err := engine.RawConfig(ctx, d.o.s.settings.Keys, row)
	if err != nil {
		return fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	config := p.Config
	if p.Merge != nil {
		merged, err := destination.MergePatch(stored, p.Merge)
		if err != nil {
			return destination.NewValidationError("destination", errors.Join(wrong, destination.Within("config", err)))
		}
		config = destination.As(row.Type, merged)
	}
	parsed, err := d.parse(row.Type, config, stored)
	if err := destination.NewValidationError("destination", errors.Join(wrong, err)); err != nil {
		return err
	}
	row.ConfigVersion = row.Version + 1
	return d.seal(ctx, row, parsed)
}

func patch[T any](field *T, to *T) {
	if to != nil {
		*field = *to
	}
}

// Pause holds what waits for a destination, until Resume: nothing more is attempted. Attempts under way go on.
func (d *Destinations) Pause(ctx context.Context, id string) error { return d.pause(ctx, id, true) }

// Resume ends a Pause.
func (d *Destinations) Resume(ctx context.Context, id string) error { return d.pause(ctx, id, false) }

func (d *Destinations) pause(ctx context.Context, id string, paused bool) error {
	row, err := d.get(ctx, id)
	if err != nil {
		return err
	}
	found := false
	err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		found, err = tx.PauseDestination(ctx, d.o.name, row.ID, paused)
		return err
	}, sqlstore.Again)
	if err == nil && !found {
		err = notFound("destination", id)
	}
	d.o.s.engine.Wake()
	return err
}

// OpenBreaker opens a destination's breaker until CloseBreaker: what waits for it is held, and no probe is let through.
func (d *Destinations) OpenBreaker(ctx context.Context, id string) error {
	return d.setBreaker(ctx, id, retry.Open)
}

// CloseBreaker closes a destination's breaker and counts its failures from zero. It opens again for new failures, unless
// retry.Breaker.Off is set. Of a disabled destination it is an error.
func (d *Destinations) CloseBreaker(ctx context.Context, id string) error {
	return d.setBreaker(ctx, id, retry.Closed)
}

func (d *Destinations) setBreaker(ctx context.Context, id string, state retry.BreakerState) error {
	row, err := d.get(ctx, id)
	if err != nil {
		return err
	}
	if row.Disabled {
		return fmt.Errorf("delivery: destination %q is disabled; enable it instead, which also resets its breaker", id)
	}
	err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.SetBreaker(ctx, row, state, d.o.s.engine.Breaker(row))
	}, sqlstore.Again)
	d.o.s.engine.Wake()
	return err
}

// Delete takes a destination out of use; its history stays. Where items wait for it, pending says what becomes of them.
func (d *Destinations) Delete(ctx context.Context, id string, pending destination.Pending) error {
	row, err := d.get(ctx, id)
	if err != nil {
		return err
	}
	if pending != destination.RefusePending && pending != destination.CancelPending {
		return destination.NewValidationError("deletion", destination.Invalid("pending", "%d is not a destination.Pending", pending))
	}
	for more := true; more; {
		err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			more = false
			if pending == destination.RefusePending {
				rows, err := d.o.s.store.Pending(ctx, tx, d.o.name, "", row.No, 1)
				if err != nil {
					return err
				}
				if len(rows) > 0 {
					return ErrInUse
				}
			} else if waiting, err := tx.CancelPending(ctx, d.o.name, "", row.No, queue.DestinationGone); err != nil {
				return err
			} else if more = waiting > 0; more {
				return nil
			}
			return tx.DeleteDestination(ctx, d.o.name, row.ID)
		}, sqlstore.Again)
		if err != nil {
			return err
		}
	}
	return nil
}

// Test tests the connection to a destination, for real and within the time limit of an attempt, and reports step by step.
// Types without a test are errors.ErrUnsupported.
func (d *Destinations) Test(ctx context.Context, id string) (*destination.TestReport, error) {
	row, err := d.get(ctx, id)
	if err != nil {
		return nil, err
	}
	t := d.typ(row.Type)
	if t == nil {
		return nil, destination.NewValidationError("destination", d.unknownType(row.Type))
	}
	config, err := engine.OpenConfig(ctx, d.o.s.settings.Keys, t, row)
	if err != nil {
		return nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	return d.test(ctx, t, row, config)
}

func (d *Destinations) test(ctx context.Context, t *wiring.Type, row *sqlstore.Destination, config any) (report *destination.TestReport, err error) {
	if t.Tester == nil {
		return nil, fmt.Errorf("delivery: connections of type %q cannot be tested: %w", t.Name, errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.s.engine.Timeout(row.Limits))
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			report, err = nil, fmt.Errorf("delivery: the connection test panicked: %v", r)
		}
	}()
	return t.Tester.Test(ctx, &handler.TestRequest{Organization: d.o.name, DestinationID: row.ID, Config: config})
}

// SigningSecrets returns the secrets that a destination signs with, the newest first: to show a generated one to who will
// verify it. It is for the destination's owners only.
func (d *Destinations) SigningSecrets(ctx context.Context, id string) ([]destination.Secret, error) {
	row, err := d.get(ctx, id)
	if err != nil {
		return nil, err
	}
	t := d.typ(row.Type)
	if t == nil || t.Signer == nil {
		return nil, fmt.Errorf("delivery: destinations of type %q do not sign: %w", row.Type, errors.ErrUnsupported)
	}
	config, err := engine.OpenConfig(ctx, d.o.s.settings.Keys, t, row)
	if err != nil {
		return nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	return t.Signer.SigningSecrets(config), nil
}
