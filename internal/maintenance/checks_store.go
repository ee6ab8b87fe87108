package maintenance

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// LastCheck reads the last scheduled connection test of a destination, nil if there was none, and
// when the next one is due.
func LastCheck(
	ctx context.Context, tx *sqlstore.Tx, organization string, no int64,
) (check *destination.Check, due time.Time, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var at time.Time
		var raw []byte
		if err := rows.Scan(sqlstore.Time{T: &due}, sqlstore.Time{T: &at}, &raw); err != nil || raw == nil {
			return err
		}
		check = &destination.Check{At: at}
		return sqlstore.Decode("report", raw, &check.Report)
	}, `select due_at, checked_at, report from delivery_checks where organization_id = $1 and destination_no = $2`,
		organization, no)
	return check, due, err
}

// checkable is a destination whose connection test is due, with the report of the last one.
type checkable struct {
	*sqlstore.DestinationRow
	Last   *destination.TestReport // nil if there was none
	LastAt time.Time
}

// leaseChecks takes destinations of the given types whose test is due, and postpones the next test
// of each until lease: a system statement. At most one process gets each.
func leaseChecks(
	ctx context.Context, tx *sqlstore.Tx, types []string, lease time.Time, limit int,
) (all []checkable, err error) {
	if len(types) == 0 {
		return nil, nil
	}
	in, args := sqlstore.Placeholders([]any{tx.Time(tx.Now), limit}, types)
	rows, err := tx.SelectDestinations(ctx, `where d.type in (`+in+`) and d.deleted_at is null
		and exists (select 1 from delivery_checks c where c.destination_no = d.no and c.due_at <= $1)
		order by d.no limit $2`, args...)
	if err != nil {
		return nil, err
	}
	for _, d := range rows {
		n, err := tx.Exec(ctx, `update delivery_checks set due_at = $3
			where destination_no = $1 and organization_id = $2 and due_at <= $4`,
			d.No, d.Organization, tx.Time(lease), tx.Time(tx.Now))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			continue
		}
		c := checkable{DestinationRow: d}
		last, _, err := LastCheck(ctx, tx, d.Organization, d.No)
		if err != nil {
			return nil, err
		}
		if last != nil {
			c.Last, c.LastAt = last.Report, last.At
		}
		all = append(all, c)
	}
	return all, nil
}

// scheduleChecks schedules tests of destinations of the given types that have none, and removes the
// schedules of deleted destinations: a system statement.
func scheduleChecks(ctx context.Context, tx *sqlstore.Tx, types []string, due time.Time, limit int) error {
	if _, err := tx.Exec(ctx, `delete from delivery_checks where destination_no in (
		select c.destination_no from delivery_checks c join delivery_destinations d on d.no = c.destination_no
		where d.deleted_at is not null limit $1)`, limit); err != nil || len(types) == 0 {
		return err
	}
	in, args := sqlstore.Placeholders([]any{tx.Time(due), limit}, types)
	_, err := tx.Exec(ctx, `insert into delivery_checks (destination_no, organization_id, due_at)
		select d.no, d.organization_id, `+tx.At(`$1`)+` from delivery_destinations d
		where d.type in (`+in+`) and d.deleted_at is null
		and not exists (select 1 from delivery_checks c where c.destination_no = d.no) order by d.no limit $2
		on conflict do nothing`, args...)
	return err
}

// finishCheck stores the report of a test, nil if none was made, and when the next test is due.
func finishCheck(
	ctx context.Context, tx *sqlstore.Tx, d *sqlstore.DestinationRow, report *destination.TestReport, due time.Time,
) error {
	if report == nil {
		_, err := tx.Exec(
			ctx,
			`update delivery_checks set due_at = $3 where destination_no = $1 and organization_id = $2`,
			d.No,
			d.Organization,
			tx.Time(due),
		)
		return err
	}
	_, err := tx.Exec(ctx, `update delivery_checks set due_at = $3, checked_at = $4, ok = $5, report = $6
		where destination_no = $1 and organization_id = $2`,
		d.No, d.Organization, tx.Time(due), tx.Time(tx.Now), report.OK, tx.JSON(sqlstore.Encode(report)))
	return err
}
