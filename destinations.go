package delivery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
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

const (
	mostLabel    = 200 // bytes
	mostConfig   = 256 << 10
	mostFallback = 100
)

// Create stores a new destination. All that is wrong with it is one *destination.ValidationError; secrets without keys
// to seal them are ErrNoKeys.
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

// Validate checks what Create would be given, and stores nothing. What is wrong is a *destination.ValidationError, which has
// the warnings too; without an error, the warnings are of what Create accepts and is perhaps not meant.
func (d *Destinations) Validate(ctx context.Context, spec destination.Spec) (warnings []*destination.FieldError, err error) {
	if err := d.o.authorize(ctx, access.WriteDestinations); err != nil {
		return nil, err
	}
	row, config, err := d.specify(spec)
	if row != nil {
		warnings = d.warnings(row, config)
	}
	if wrong := (*destination.ValidationError)(nil); errors.As(err, &wrong) {
		wrong.Warnings = append(wrong.Warnings, warnings...)
	}
	return warnings, err
}

// specify checks a spec; config is nil where that is not valid.
func (d *Destinations) specify(spec destination.Spec) (row *sqlstore.Destination, config any, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, nil, err
	}
	row = &sqlstore.Destination{ConfigVersion: 1}
	row.Organization, row.ID = d.o.name, id.String()
	row.Label, row.Description, row.Icon, row.Instructions = spec.Label, spec.Description, spec.Icon, spec.Instructions
	row.Tags, row.Default, row.Disabled, row.Limits, row.Retry, row.Breaker = spec.Tags, spec.Default, spec.Disabled, spec.Limits, spec.Retry, spec.Breaker
	row.Subscription, row.DefaultTopics, row.Fallback = spec.Subscription, spec.DefaultTopics, spec.Fallback
	if isNil(spec.Config) {
		err = destination.Require("config", "")
	} else {
		row.Type = spec.Config.DestinationType()
		config, err = d.parse(row.Type, spec.Config, nil)
	}
	if err := destination.NewValidationError("destination", errors.Join(check(&row.Destination), err)); err != nil {
		return row, nil, err
	}
	return row, config, nil
}

// ValidatePatch is Validate for a destination as Update would make it. With the empty patch it tells what is to be warned of
// in the destination as it is: among the defaults, whether it is usable now.
func (d *Destinations) ValidatePatch(ctx context.Context, id string, p destination.Patch) (warnings []*destination.FieldError, err error) {
	row, config, err := d.patched(ctx, id, p)
	if err != nil {
		return nil, err
	}
	return d.warnings(row, config), nil
}

// patched returns a destination and its config as Update would make them. The config is nil where the type has no handler.
func (d *Destinations) patched(ctx context.Context, id string, p destination.Patch) (row *sqlstore.Destination, config any, err error) {
	if row, err = d.get(ctx, id, access.WriteDestinations); err != nil {
		return nil, nil, err
	}
	if err := d.apply(ctx, row, p); err != nil {
		return nil, nil, err
	}
	t := d.typ(row.Type)
	if t == nil {
		return row, nil, nil
	}
	if config, err = engine.OpenConfig(ctx, d.o.s.settings.Keys, t, row); err != nil {
		return nil, nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	return row, config, nil
}

// warnings are what is probably not meant.
func (d *Destinations) warnings(row *sqlstore.Destination, config any) (all []*destination.FieldError) {
	warn := func(path, code, format string, args ...any) {
		all = append(all, &destination.FieldError{Path: path, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	t := d.typ(row.Type)
	if t == nil {
		warn("type", "no_handler", "has no handler in this process: what goes there waits for a process that has one")
	}
	if row.Default {
		switch {
		case row.Disabled:
			warn("default", "disabled", "is set, and the destination is disabled: what goes to the defaults waits, or goes to a fallback")
		case row.Health.Breaker != retry.Closed:
			warn("default", "unhealthy", "is set, and the destination's breaker is not closed: what goes to the defaults waits, or goes to a fallback")
		case row.Health.Status == destination.Degraded || row.Health.Status == destination.Unhealthy:
			warn("default", "unhealthy", "is set, and the last %d attempts at the destination have failed", row.Health.ConsecutiveFailures)
		}
		if !row.PausedAt.IsZero() {
			warn("default", "paused", "is set, and the destination is paused: what goes to the defaults waits until Resume")
		}
	}
	if config == nil || t == nil || t.Warner == nil {
		return all
	}
	for _, w := range t.Warner.Warn(config) {
		w := *w
		w.Path = "config." + w.Path
		all = append(all, &w)
	}
	return all
}

func (d *Destinations) insert(ctx context.Context, row *sqlstore.Destination, config any) (*destination.Destination, error) {
	if err := d.seal(ctx, row, config); err != nil {
		return nil, err
	}
	err := d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		return tx.InsertDestination(ctx, row)
	}, func(ctx context.Context, tx *sqlstore.Tx) (bool, error) {
		stored, err := tx.Destination(ctx, row.Organization, row.ID)
		return stored != nil, err
	})
	if err != nil {
		return nil, err
	}
	row.Health.Status = destination.Healthy
	d.changed(row, DestinationCreated, "")
	return &row.Destination, nil
}

// changed tells who listens what was done to a destination.
func (d *Destinations) changed(row *sqlstore.Destination, kind EventKind, reason string) {
	d.o.s.publish(Event{Kind: kind, Organization: d.o.name, Destination: row.ID, Version: row.Version, Reason: reason})
}

// Duplicate creates a destination like another one, with its credentials, under another label; "" is the label with " (copy)"
// after it. The copy is disabled and no default, so that nothing is delivered twice before it was looked at; it has the same
// signing secrets.
func (d *Destinations) Duplicate(ctx context.Context, id, label string) (*destination.Destination, error) {
	row, err := d.get(ctx, id, access.WriteDestinations)
	if err != nil {
		return nil, err
	}
	raw, err := engine.RawConfig(ctx, d.o.s.settings.Keys, row)
	if err != nil {
		return nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	if label == "" {
		const suffix = " (copy)"
		label = strings.ToValidUTF8(row.Label[:min(len(row.Label), mostLabel-len(suffix))], "") + suffix
	}
	copied, config, err := d.specify(destination.Spec{
		Label: label, Description: row.Description, Icon: row.Icon, Instructions: row.Instructions, Config: destination.As(row.Type, raw),
		Tags: row.Tags, Disabled: true, Limits: row.Limits, Retry: row.Retry, Breaker: row.Breaker,
	})
	if err != nil {
		return nil, err
	}
	return d.insert(ctx, copied, config)
}

func (d *Destinations) typ(name string) *wiring.Type { return d.o.s.settings.Types[name] }

func (d *Destinations) unknownType(name string) error {
	return &destination.FieldError{Path: "type", Code: "unknown",
		Message: fmt.Sprintf("there is no handler for %.100q; register one with delivery.WithHandler (there are: %q)", name, d.o.s.typeNames())}
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
	if err != nil {
		return nil, destination.Within("config", err)
	}
	var parsed any = raw
	if t.Parser != nil {
		parsed, err = engine.ParseConfig(t, raw)
	}
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

// normalize gives a config the form it is parsed from: JSON that every database takes.
func normalize(typ string, config destination.Config) (json.RawMessage, error) {
	if t := config.DestinationType(); t != typ {
		return nil, destination.Invalid("", "is of type %.100q, the destination of type %q", t, typ)
	}
	raw, err := destination.Raw(config)
	switch {
	case err != nil:
		return nil, err
	case len(raw) > mostConfig:
		return nil, destination.Invalid("", "has %d bytes, at most %d are allowed", len(raw), mostConfig)
	case !utf8.Valid(raw):
		return nil, destination.Invalid("", "is not valid UTF-8")
	case bytes.Contains(raw, []byte(`\u0000`)):
		return nil, destination.Invalid("", "contains a NUL character")
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, destination.Invalid("", "has a number that is too large")
	}
	exact := json.NewDecoder(bytes.NewReader(raw))
	exact.UseNumber()
	if err := exact.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v) // without what JSON can say and text cannot, such as "\ud800"
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
	text("label", d.Label, mostLabel, false)
	text("description", d.Description, 10_000, true)
	text("instructions", d.Instructions, 100_000, true)
	text("icon", d.Icon, 2000, false)
	if u, err := url.Parse(d.Icon); d.Icon != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "") {
		errs = append(errs, destination.Invalid("icon", "is not an http or https URL"))
	}
	if len(d.Tags) > mostTags {
		errs = append(errs, destination.Invalid("tags", "has %d tags, at most %d are allowed", len(d.Tags), mostTags))
	} else {
		for i, tag := range d.Tags {
			path := fmt.Sprintf("tags[%d]", i)
			errs = append(errs, destination.Require(path, tag))
			text(path, tag, 100, false)
			if slices.Contains(d.Tags[:i], tag) {
				errs = append(errs, destination.Invalid(path, "is there twice"))
			}
		}
	}
	if !d.Default && (d.Fallback != 0 || len(d.DefaultTopics) > 0) {
		errs = append(errs, destination.Invalid("default", "is not set, but fallback or default_topics is"))
	}
	if d.Fallback < 0 || d.Fallback > mostFallback {
		errs = append(errs, destination.Invalid("fallback", "%d is not between 0 and %d", d.Fallback, mostFallback))
	}
	if !d.DrainingAt.IsZero() && (d.Default || !d.Subscription.IsZero()) {
		errs = append(errs, destination.Invalid("", "is being deleted, and takes nothing new"))
	}
	for k, v := range d.Subscription.Metadata {
		text("subscription.metadata", k+v, 1000, false)
	}
	for i, tag := range d.Subscription.Tags {
		text(fmt.Sprintf("subscription.tags[%d]", i), tag, 100, false)
	}
	errs = append(errs, destination.Within("subscription", d.Subscription.Validate()), destination.ValidateTopics("default_topics", d.DefaultTopics),
		destination.Within("limits", d.Limits.Validate()), destination.Within("retry", d.Retry.Validate()),
		destination.Within("breaker", d.Breaker.Validate()))
	return errors.Join(errs...)
}

// Get returns a destination; its secrets are redacted.
func (d *Destinations) Get(ctx context.Context, id string) (*destination.Destination, error) {
	row, err := d.get(ctx, id, access.ReadDestinations)
	if err != nil {
		return nil, err
	}
	return &row.Destination, nil
}

func (d *Destinations) get(ctx context.Context, id string, action access.Action) (row *sqlstore.Destination, err error) {
	if err := d.o.authorize(ctx, action); err != nil {
		return nil, err
	}
	defer d.o.watch(ctx, action, &err)
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

// DestinationFilter selects destinations: those that fit all fields that are set.
type DestinationFilter struct {
	Type     string
	Enabled  *bool // destination.Set(true)
	Default  *bool
	Health   destination.HealthStatus
	Label    string // is part of the label, in whichever case
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
		errs = append(errs, destination.Invalid("health", "is not %s, %s or %s", destination.Healthy, destination.Degraded, destination.Unhealthy))
	}
	return destination.Within("filter", errors.Join(errs...))
}

func (f DestinationFilter) fits(d *destination.Destination) bool {
	return (f.Health == "" || d.Health.Status == f.Health) && (f.Tag == "" || slices.Contains(d.Tags, f.Tag)) &&
		(f.Draining == nil || *f.Draining != d.DrainingAt.IsZero()) &&
		strings.Contains(strings.ToLower(d.Label), strings.ToLower(f.Label))
}

// List returns the destinations that the filter selects in the order they were created, 100 a page, from after the cursor; ""
// is the start.
func (d *Destinations) List(ctx context.Context, f DestinationFilter, cursor string) (Page[*destination.Destination], error) {
	var page Page[*destination.Destination]
	if err := d.o.authorize(ctx, access.ReadDestinations); err != nil {
		return page, err
	}
	wrong := f.check()
	if cursor != "" {
		canonical, ok := canonicalID(cursor)
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
		var rows []*sqlstore.Destination
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

// Update changes what the patch sets. It is checked as a whole, as by Create. A change that another has overtaken is made
// on top of that, unless the patch demands a version: then it is ErrStale. Enabling a destination resets its
// failures and its breaker, and lets out what was held at a bounded rate; disabling it holds what waits.
func (d *Destinations) Update(ctx context.Context, id string, p destination.Patch) (*destination.Destination, error) {
	return d.update(ctx, id, access.WriteDestinations, p, d.apply)
}

func (d *Destinations) update(ctx context.Context, id string, action access.Action, p destination.Patch,
	apply func(ctx context.Context, row *sqlstore.Destination, p destination.Patch) error,
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
			d.changed(row, DestinationUpdated, "")
			if toggled {
				d.changed(row, map[bool]EventKind{true: DestinationDisabled, false: DestinationEnabled}[row.Disabled], row.DisabledReason)
			}
			return &row.Destination, nil
		}
	}
	return nil, fmt.Errorf("%w: destination %q changes all the time", ErrStale, id)
}

// errOvertaken rolls back an update that another has overtaken.
var errOvertaken = errors.New("delivery: changed meanwhile")

// apply puts a patch into row.
func (d *Destinations) apply(ctx context.Context, row *sqlstore.Destination, p destination.Patch) error {
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
	wrong := check(&row.Destination)
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

// reconfigure puts into row what change makes of its config. wrong is what is wrong with other fields.
func (d *Destinations) reconfigure(ctx context.Context, row *sqlstore.Destination, wrong error, change func(stored json.RawMessage) (destination.Config, error)) error {
	stored, err := engine.RawConfig(ctx, d.o.s.settings.Keys, row)
	if err != nil {
		return fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	var parsed any
	config, err := change(stored)
	if err == nil {
		parsed, err = d.parse(row.Type, config, stored)
	}
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

// Delete takes a destination out of use; its history stays. Where items wait for it, pending says what becomes of them. With
// destination.DrainPending they are delivered first: until then the destination is listed, takes nothing new, and can be
// changed; then Maintain deletes it.
func (d *Destinations) Delete(ctx context.Context, id string, pending destination.Pending) error {
	row, err := d.get(ctx, id, access.WriteDestinations)
	if err != nil {
		return err
	}
	if pending < destination.RefusePending || pending > destination.DrainPending {
		return destination.NewValidationError("deletion", destination.Invalid("pending", "%d is not a destination.Pending", pending))
	}
	drained := true
	for more := true; more; {
		err = d.o.s.store.Write(ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
			more = false
			drained = true
			if pending != destination.CancelPending {
				rows, err := d.o.s.store.Pending(ctx, tx, d.o.name, "", row.No, 1)
				switch {
				case err != nil:
					return err
				case len(rows) > 0 && pending == destination.RefusePending:
					return ErrInUse
				case len(rows) > 0:
					drained = false
					return tx.DrainDestination(ctx, d.o.name, row.ID)
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
	row.Version = 0 // others may have changed it meanwhile
	if drained {
		d.changed(row, DestinationDeleted, "")
	} else {
		d.changed(row, DestinationUpdated, "it is deleted once nothing waits for it")
	}
	return nil
}
