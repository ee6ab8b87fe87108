package queuestore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/destination"
)

// usable is the condition that a request for the defaults can go to destination d at clock.now. A
// breaker that would let probes through counts as closed: without items there are no probes.
const usable = `not d.disabled and not exists (select 1 from delivery_health u
	where u.destination_no = d.no and u.organization_id = d.organization_id and u.breaker <> 0
	and (u.probe_at is null or u.probe_at > clock.now))`

// Default is a destination among the defaults of its organization.
type Default struct {
	ID     string
	Place  int      // 0: it is a primary one; otherwise its place among the fallbacks
	Topics []string // nil: all topics
	Usable bool
}

// defaults lists the defaults of an organization.
func defaults(
	ctx context.Context, d sqlstore.Syntax, tx sqlstore.Execer, organization string, now time.Time,
) (all []Default, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var d Default
		var topics []byte
		if err := rows.Scan(&d.ID, &d.Place, &topics, &d.Usable); err != nil {
			return err
		}
		err := sqlstore.Decode("default topics", topics, &d.Topics)
		all = append(all, d)
		return err
	}, d.Rebind(`select d.id, d.fallback, d.default_topics, `+usable+`
		from delivery_destinations d cross join (select `+d.At(`$2`)+` as now) clock
		where d.organization_id = $1 and d.is_default and d.deleted_at is null order by d.no`),
		organization, d.Time(now))
	return all, err
}

// Defaults lists the defaults of an organization.
func Defaults(ctx context.Context, tx *sqlstore.Tx, organization string) ([]Default, error) {
	return defaults(ctx, tx.Syntax, tx.Execer, organization, tx.Now)
}

// Choose returns the defaults that a request of a topic goes to. It considers those for the topic
// or, if there are none, those for all topics. Of these it chooses the primary ones if one of them
// is usable, otherwise the first usable fallback, otherwise those with the lowest place.
func Choose(all []Default, topic string) []Default {
	var fitting []Default
	special := false
	for _, d := range all {
		if d.Topics == nil || destination.MatchTopics(d.Topics, topic) {
			fitting, special = append(fitting, d), special || d.Topics != nil
		}
	}
	fitting = slices.DeleteFunc(fitting, func(d Default) bool { return (d.Topics != nil) != special })
	if len(fitting) == 0 {
		return nil
	}
	best := slices.MinFunc(fitting, func(a, b Default) int {
		switch {
		case a.Usable == b.Usable:
			return cmp.Compare(a.Place, b.Place)
		case a.Usable:
			return -1
		}
		return 1
	})
	return slices.DeleteFunc(fitting, func(d Default) bool { return d.Place != best.Place })
}

// selectable is a destination that requests reach by tags or by its subscription too.
type selectable struct {
	id           string
	tags         []string
	subscription destination.Subscription
}

func selectables(
	ctx context.Context, d sqlstore.Syntax, tx sqlstore.Execer, organization string,
) (all []selectable, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var s selectable
		var tags, subscription []byte
		if err := rows.Scan(&s.id, &tags, &subscription); err != nil {
			return err
		}
		err := errors.Join(sqlstore.Decode("tags", tags, &s.tags),
			sqlstore.Decode("subscription", subscription, &s.subscription))
		all = append(all, s)
		return err
	}, d.Rebind(`select id, tags, subscription from delivery_destinations where organization_id = $1
		and deleted_at is null
		and draining_at is null and (tags is not null or subscription is not null) order by no`), organization)
	return all, err
}

func (s *selectable) fits(n *NewDelivery) bool {
	return slices.ContainsFunc(s.tags, func(t string) bool { return slices.Contains(n.Tagged, t) }) ||
		n.Subscribers && s.subscription.Matches(n.Topic, n.Tags, n.Metadata)
}

// Resolve returns the batch with items for the defaults, subscribers and tags that its deliveries
// ask for, after the items that they name. If all deliveries only name their destinations, it
// returns batch itself and reads nothing.
func Resolve(
	ctx context.Context, d sqlstore.Syntax, tx sqlstore.Execer, organization string, now time.Time, batch []NewDelivery,
) ([]NewDelivery, error) {
	byDefault := slices.ContainsFunc(batch, func(n NewDelivery) bool { return n.Defaults() })
	selecting := slices.ContainsFunc(batch, func(n NewDelivery) bool { return n.selects() })
	if !byDefault && !selecting {
		return batch, nil
	}
	var preset []Default
	var others []selectable
	var err error
	if byDefault {
		if preset, err = defaults(ctx, d, tx, organization, now); err != nil {
			return nil, err
		}
	}
	if selecting {
		if others, err = selectables(ctx, d, tx, organization); err != nil {
			return nil, err
		}
	}
	batch = slices.Clone(batch)
	for i := range batch {
		n := &batch[i]
		n.Items = slices.Clip(n.Items)
		add := func(id string) {
			n.Items = append(n.Items, NewItem{Destination: id, Priority: n.Priority, NotBefore: n.NotBefore})
		}
		if n.Defaults() {
			for _, c := range Choose(preset, n.Topic) {
				add(c.ID)
				n.Fallback = c.Place > 0
			}
			continue
		}
		if !n.selects() {
			continue
		}
		named := n.Items
		for _, o := range others {
			isNamed := slices.ContainsFunc(named, func(item NewItem) bool { return item.Destination == o.id })
			if !isNamed && o.fits(n) {
				add(o.id)
			}
		}
	}
	return batch, nil
}
