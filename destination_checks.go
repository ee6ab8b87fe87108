package delivery

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/google/uuid"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

// Validate checks a spec as Create does, and stores nothing. An invalid spec is a
// [*destination.ValidationError], which has the warnings too. warnings lists settings that are
// valid but probably unintended.
func (d *Destinations) Validate(
	ctx context.Context,
	spec destination.Spec,
) (warnings []*destination.FieldError, err error) {
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

// specify checks a spec. config is nil if the spec is not valid.
func (d *Destinations) specify(spec destination.Spec) (row *sqlstore.DestinationRow, config any, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, nil, err
	}
	row = &sqlstore.DestinationRow{ConfigVersion: 1}
	row.Organization, row.ID = d.o.name, id.String()
	row.Label, row.Description, row.Icon, row.Instructions = spec.Label, spec.Description, spec.Icon, spec.Instructions
	row.Tags, row.Default, row.Disabled = spec.Tags, spec.Default, spec.Disabled
	row.Limits, row.Retry, row.Breaker = spec.Limits, spec.Retry, spec.Breaker
	row.Subscription, row.DefaultTopics, row.Fallback = spec.Subscription, spec.DefaultTopics, spec.Fallback
	if isNil(spec.Config) {
		err = destination.Require("config", "")
	} else {
		row.Type = spec.Config.DestinationType()
		config, err = d.o.s.configs.Parse(row.Type, spec.Config, nil)
	}
	if err := destination.NewValidationError(
		"destination",
		errors.Join(checkFields(&row.Destination), err),
	); err != nil {
		return row, nil, err
	}
	return row, config, nil
}

// ValidatePatch is Validate for a destination as Update would make it. An empty patch returns the
// warnings for the destination as it is, for example that a default is not usable now.
func (d *Destinations) ValidatePatch(
	ctx context.Context, id string, p destination.Patch,
) (warnings []*destination.FieldError, err error) {
	row, config, err := d.patched(ctx, id, p)
	if err != nil {
		return nil, err
	}
	return d.warnings(row, config), nil
}

// patched returns a destination and its config as Update would make them. The config is nil if the
// type has no handler.
func (d *Destinations) patched(
	ctx context.Context, id string, p destination.Patch,
) (row *sqlstore.DestinationRow, config any, err error) {
	if row, err = d.get(ctx, id, access.WriteDestinations); err != nil {
		return nil, nil, err
	}
	if err := d.apply(ctx, row, p); err != nil {
		return nil, nil, err
	}
	t := d.o.s.settings.Types[row.Type]
	if t == nil {
		return row, nil, nil
	}
	if config, err = d.o.s.configs.Open(ctx, t, row); err != nil {
		return nil, nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	return row, config, nil
}

// warnings lists settings that are valid but probably unintended.
func (d *Destinations) warnings(row *sqlstore.DestinationRow, config any) (all []*destination.FieldError) {
	warn := func(path, code, format string, args ...any) {
		all = append(all, &destination.FieldError{Path: path, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	t := d.o.s.settings.Types[row.Type]
	if t == nil {
		warn("type", "no_handler", "has no handler in this process: items for it wait for a process that has one")
	}
	if row.Default {
		switch {
		case row.Disabled:
			warn(
				"default", "disabled",
				"is set, but the destination is disabled: items for the defaults wait, or go to a fallback",
			)
		case row.Health.Breaker != retry.Closed:
			warn(
				"default", "unhealthy",
				"is set, but the destination's breaker is not closed: items for the defaults wait, or go to a fallback",
			)
		case row.Health.Status == destination.Degraded || row.Health.Status == destination.Unhealthy:
			warn(
				"default", "unhealthy", "is set, but the last %d attempts at the destination have failed",
				row.Health.ConsecutiveFailures,
			)
		}
		if !row.PausedAt.IsZero() {
			warn("default", "paused", "is set, but the destination is paused: items for the defaults wait until Resume")
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

// checkFields checks the fields that do not depend on the type.
func checkFields(d *destination.Destination) error {
	p := &problems{}
	p.join(destination.Require("label", d.Label))
	p.text("label", d.Label, maxLabel)
	p.lines("description", d.Description, 10_000)
	p.lines("instructions", d.Instructions, 100_000)
	p.text("icon", d.Icon, 2000)
	if u, err := url.Parse(
		d.Icon,
	); d.Icon != "" &&
		(err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "") {
		p.add("icon", "is not an http or https URL")
	}
	checkDestinationTags(p, d.Tags)
	if !d.Default && (d.Fallback != 0 || len(d.DefaultTopics) > 0) {
		p.add("default", "is not set, but fallback or default_topics is")
	}
	if d.Fallback < 0 || d.Fallback > maxFallback {
		p.add("fallback", "%d is not between 0 and %d", d.Fallback, maxFallback)
	}
	if !d.DrainingAt.IsZero() && (d.Default || !d.Subscription.IsZero()) {
		p.add("", "is being deleted, and takes nothing new")
	}
	for k, v := range d.Subscription.Metadata {
		p.text("subscription.metadata", k+v, 1000)
	}
	for i, tag := range d.Subscription.Tags {
		p.text(fmt.Sprintf("subscription.tags[%d]", i), tag, maxTag)
	}
	p.join(destination.Within("subscription", d.Subscription.Validate()))
	p.join(destination.ValidateTopics("default_topics", d.DefaultTopics))
	p.join(destination.Within("limits", d.Limits.Validate()))
	p.join(destination.Within("retry", d.Retry.Validate()))
	p.join(destination.Within("breaker", d.Breaker.Validate()))
	return errors.Join(p.errs...)
}

func checkDestinationTags(p *problems, tags []string) {
	if len(tags) > maxTags {
		p.add("tags", "has %d tags, at most %d are allowed", len(tags), maxTags)
		return
	}
	for i, tag := range tags {
		path := fmt.Sprintf("tags[%d]", i)
		p.join(destination.Require(path, tag))
		p.text(path, tag, maxTag)
		if slices.Contains(tags[:i], tag) {
			p.add(path, "is a duplicate")
		}
	}
}
