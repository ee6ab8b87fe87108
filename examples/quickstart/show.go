package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/queue"
)

// show prints every attempt in the order in which they ended, then the dead letters. Its error
// lists what went otherwise than it should.
func show(deliveries []*delivery.Status, receiver *receiver) error {
	receiver.mu.Lock()
	defer receiver.mu.Unlock()
	type row struct {
		at   time.Time
		text string
	}
	var rows []row
	var dead strings.Builder
	var errs []error
	offset := func(t time.Time) string { return fmt.Sprintf("+%.2fs", t.Sub(deliveries[0].CreatedAt).Seconds()) }
	for _, d := range deliveries {
		for _, item := range d.Items {
			what := d.Payload.Name + " for " + item.Label
			came := receiver.seen[item.ID] // an item's id is its message id
			for i, a := range item.Attempts {
				then, signature := a.State.String(), "-"
				if a.State == queue.Scheduled {
					then = "retry at " + offset(a.NextAttempt)
				}
				if i < len(came) {
					signature = "verified"
					if came[i].err != nil || came[i].sha256 != d.Payload.SHA256 {
						signature = "WRONG"
						errs = append(errs, fmt.Errorf("%s came with a wrong signature or content", what), came[i].err)
					}
				}
				rows = append(rows, row{a.EndedAt, fmt.Sprintf("%s\t%s\t%s\t%d\t%s\t%s\t%s",
					offset(a.EndedAt), d.Payload.Name, item.Label, a.Number, outcome(a), then, signature)})
			}
			if item.State == queue.Dead {
				fmt.Fprintf(&dead, "  %s: %s\n    %s\n", what, item.Reason, item.Attempts[len(item.Attempts)-1].Error)
			}
			got := fmt.Sprintf("%s, %d attempts, %d received", item.State, len(item.Attempts), len(came))
			want := map[string]string{
				"steady":   "delivered, 1 attempts, 1 received",
				"flaky":    "delivered, 3 attempts, 3 received",
				"refusing": "dead, 3 attempts, 0 received",
			}[item.Label]
			if got != want {
				errs = append(errs, fmt.Errorf("%s: want %s; got %s", what, want, got))
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return a.at.Compare(b.at) })
	table := "TIME\tPAYLOAD\tDESTINATION\tATTEMPT\tOUTCOME\tTHEN\tSIGNATURE\n"
	for _, r := range rows {
		table += r.text + "\n"
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = w.Write([]byte(table))
	_ = w.Flush()
	fmt.Printf("\ndead letters\n%s", dead.String())
	if len(errs) == 0 {
		fmt.Println("\nThe receiver verified every signature, and refused each request with one bit of it changed.")
	}
	return errors.Join(errs...)
}

func outcome(a delivery.Attempt) string {
	switch {
	case a.Exchange != nil && a.Exchange.StatusCode != 0:
		return fmt.Sprintf("%d %s", a.Exchange.StatusCode, http.StatusText(a.Exchange.StatusCode))
	case a.Error != nil:
		parts := strings.Split(a.Error.Message, ": ")
		return parts[len(parts)-1]
	}
	return "done"
}
