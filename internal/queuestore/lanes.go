package queuestore

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/retry"
)

// LaneInfo is what a claim needs to know about a destination.
type LaneInfo struct {
	HealthRow              // Failures, Breaker, ProbeAt and CatchUpTo
	No                     int64
	Organization, ID, Type string
	Version                int64
	Disabled, Paused       bool // Paused: it is, its organization is, or everyone is
}

// Held reports whether no item of the destination may be attempted now.
func (l *LaneInfo) Held(now time.Time) bool {
	return l.Paused || (l.Disabled || l.Breaker != retry.Closed) && !l.Probing(now)
}

// LaneInfos reads what a claim needs to know about destinations, by number: a system statement.
func LaneInfos(ctx context.Context, tx *sqlstore.Tx, nos []int64) (map[int64]LaneInfo, error) {
	all := make(map[int64]LaneInfo, len(nos))
	err := tx.Query(ctx, func(rows *sql.Rows) error {
		var l LaneInfo
		err := rows.Scan(&l.No, &l.Organization, &l.ID, &l.Type, &l.Version, &l.Disabled, &l.Paused, &l.Failures,
			&l.Breaker,
			sqlstore.Time{T: &l.ProbeAt}, &l.CatchUpTo)
		all[l.No] = l
		return err
	}, `select d.no, d.organization_id, d.id, d.type, d.version, d.disabled,
		d.paused_at is not null
			or d.organization_id in (select organization_id from delivery_organizations where paused_at is not null)
			or exists (select 1 from delivery_organizations where organization_id = '' and paused_at is not null),
		coalesce(h.failures, 0), coalesce(h.breaker, 0), h.probe_at, coalesce(h.catch_up_to, 0)
		from delivery_destinations d left join delivery_health h on h.destination_no = d.no
		where d.no in (`+sqlstore.Numbers(nos)+`)`)
	return all, err
}
