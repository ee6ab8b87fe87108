package delivery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

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
	if err := destination.NewValidationError("destination", errors.Join(checkFields(&row.Destination), err)); err != nil {
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

// lines takes out the control characters that longer texts may have.
var lines = strings.NewReplacer("\n", "", "\r", "", "\t", "")

// checkFields checks what does not depend on the type.
func checkFields(d *destination.Destination) error {
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
