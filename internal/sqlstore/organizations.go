package sqlstore

import (
	"context"
	"database/sql"
	"time"
)

// Everyone is the pseudo-organization whose pause applies to all.
const Everyone = ""

// PauseOrganization holds all items of an organization, or of all with [Everyone], or releases
// them.
func (tx *Tx) PauseOrganization(ctx context.Context, organization string, paused bool) error {
	var at time.Time
	if paused {
		at = tx.Now
	}
	_, err := tx.Exec(ctx, `insert into delivery_organizations (organization_id, paused_at) values ($1, $2)
		on conflict (organization_id) do update set paused_at = excluded.paused_at`, organization, tx.Time(at))
	return err
}

// Paused returns when an organization was paused, and when everyone was. A time is zero where there
// is no pause.
func (tx *Tx) Paused(ctx context.Context, organization string) (own, everyone time.Time, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var of string
		var at time.Time
		err := rows.Scan(&of, Time{&at})
		if of == Everyone {
			everyone = at
		} else {
			own = at
		}
		return err
	}, `select organization_id, paused_at from delivery_organizations where organization_id in ($1, '')`, organization)
	return own, everyone, err
}
