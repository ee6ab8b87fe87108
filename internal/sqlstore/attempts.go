package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/queue"
)

// Attempts lists the history of deliveries, item by item and in the order in which it happened.
func (tx *Tx) Attempts(
	ctx context.Context, organization string, deliveries ...string,
) (attempts []AttemptRow, err error) {
	query, args := AttemptsQuery(organization, deliveries)
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var a AttemptRow
		var category, status sql.NullInt64
		var code, text string
		var took sql.NullFloat64
		var reference, detail []byte
		if err := rows.Scan(&a.Organization, &a.Delivery, &a.N, &a.Fence, &a.Destination, &a.Number, &a.State,
			&a.Reason,
			&category, &status, Text{&code}, Text{&text}, &took, Time{&a.EndedAt}, Time{&a.NextAt},
			&reference, &detail); err != nil {
			return err
		}
		if category.Valid {
			a.Failure = &Failure{handler.Category(category.Int64), int(status.Int64), code, text}
		}
		if a.Took = NotBegun; took.Valid {
			a.Took = time.Duration(took.Float64 * float64(time.Second)).Round(time.Microsecond)
		}
		attempts = append(attempts, a)
		last := &attempts[len(attempts)-1]
		return errors.Join(Decode("reference", reference, &last.Reference), Decode("detail", detail, &last.Detail))
	}, query, args...)
	slices.SortStableFunc(attempts, func(a, b AttemptRow) int {
		return cmp.Or(cmp.Compare(a.Delivery, b.Delivery), cmp.Compare(a.N, b.N), cmp.Compare(a.Fence, b.Fence))
	})
	return attempts, err
}

// AttemptsQuery is the query of [Tx.Attempts], with $1 placeholders. It has no order: for several
// deliveries an index gives one only to a query that reads all of the organization's.
func AttemptsQuery(organization string, deliveries []string) (query string, args []any) {
	in, args := Among(organization, deliveries)
	return `select organization_id, delivery_id, n, fence, destination_id, attempt, state, reason, category,
		status_code,
		code, error, took, ended_at, next_at, reference, detail
		from delivery_attempts where organization_id = $1 and delivery_id ` + in, args
}

// AttemptRow is a record in the history of an item: an attempt, or another change of its state.
type AttemptRow struct {
	Key
	Destination string
	Number      int // 0: there was no attempt, or it does not count
	State       queue.State
	Reason      queue.Reason
	Failure     *Failure
	Took        time.Duration // NotBegun: there was no attempt
	EndedAt     time.Time     // when it was recorded
	NextAt      time.Time
	Reference   handler.Reference
	Detail      Detail
	Place       string // Claimed.Place, "" where it is not known
}

// NotBegun is the [AttemptRow.Took] of a record that is not of an attempt.
const NotBegun time.Duration = -1

// Plain reports whether there is nothing to record but that the item was delivered.
func (a *AttemptRow) Plain() bool {
	return a.State == queue.Delivered && a.Reason == queue.None && a.Failure == nil && a.Took != NotBegun &&
		a.Reference.ID == "" && a.Reference.URL == "" && a.Reference.Details == nil &&
		a.Detail.Exchange == nil && a.Detail.Parts == nil && a.Detail.Notes == nil
}

// Failure says what went wrong in an attempt.
type Failure struct {
	Category   handler.Category
	StatusCode int
	Code       string
	Text       string
}

// Detail is the part of an attempt's record that is for people to read.
type Detail struct {
	Exchange *handler.Exchange `json:"exchange,omitempty"`
	Parts    []handler.Part    `json:"parts,omitempty"`
	Notes    map[string]string `json:"notes,omitempty"`
}
