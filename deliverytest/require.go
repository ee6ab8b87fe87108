package deliverytest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
)

// RequireAttempts ends the test unless exactly n attempts were made, failed ones included, and
// returns them.
func (d *Destination) RequireAttempts(n int) []Attempt {
	d.kit.t.Helper()
	all := d.Attempts()
	if len(all) != n {
		d.kit.t.Fatalf("deliverytest: want %s, got %d\n%s", count(n, "attempt"), len(all), d.report())
	}
	return all
}

// RequireDelivered ends the test unless the destination took exactly n deliveries, and returns the
// attempts that delivered them: what the other side would have by now. Failed attempts do not
// count.
func (d *Destination) RequireDelivered(n int) []Attempt {
	d.kit.t.Helper()
	all := slices.DeleteFunc(d.Attempts(), func(a Attempt) bool { return a.Err != nil })
	if len(all) != n {
		d.kit.t.Fatalf("deliverytest: want %s delivered, got %d\n%s", count(n, "item"), len(all), d.report())
	}
	return all
}

// RequireNothing ends the test if any attempt was made.
func (d *Destination) RequireNothing() {
	d.kit.t.Helper()
	if len(d.Attempts()) > 0 {
		d.kit.t.Fatalf("deliverytest: want no attempt\n%s", d.report())
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

const layout = "2006-01-02 15:04:05.999"

// report shows what the destination recorded, and how far the kit has come.
func (d *Destination) report() string {
	var b strings.Builder
	all := d.Attempts()
	fmt.Fprintf(&b, "%s of %q recorded %s", d.label, d.organization, count(len(all), "attempt"))
	if len(all) > 0 {
		b.WriteString(":\n")
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "  AT\tATTEMPT\tITEM\tTOPIC\tCONTENT\tSTEP\tOUTCOME")
		for _, a := range all {
			_, _ = fmt.Fprintf(w, "  %s\t%d\t%s\t%s\t%s\t%s\t%s\n", a.At.Format(layout), a.Number, a.ItemID, a.Topic,
				excerpt(string(a.Content), maxShown), excerpt(a.Step, maxShown), a.outcome())
		}
		_ = w.Flush() // a strings.Builder takes everything
	} else {
		b.WriteString("\n")
	}
	b.WriteString(d.kit.position())
	return b.String()
}

// outcome says how an attempt ended.
func (a Attempt) outcome() string {
	switch {
	case a.Err == nil:
		return "delivered"
	case errors.Is(a.Err, errUnderWay):
		return "under way"
	case errors.Is(a.Err, errUnscripted):
		return "not scripted"
	case errors.Is(a.Err, errPanicked):
		return "panicked"
	case errors.Is(a.Err, settings.ErrCrash):
		return "crashed"
	}
	f := handler.Classify(a.Err)
	kind := "transient"
	if !f.WillRetry() {
		kind = "permanent"
	}
	return excerpt(fmt.Sprintf("%s, %s: %v", kind, f.Category, a.Err), maxSaid)
}

// position says how far the kit has come, and what to call next.
func (k *Kit) position() string {
	now := k.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.passes == 0:
		return "nothing has been processed yet: call Process or Advance"
	case k.next.After(now):
		return fmt.Sprintf(
			"the time is %s; something falls due at %s: call Advance(%v)", now.Format(layout), k.next.Format(layout),
			k.next.Sub(now),
		)
	}
	return fmt.Sprintf(
		"the time is %s; at the last Process or Advance nothing was waiting for its time", now.Format(layout),
	)
}

const (
	maxShown = 60  // characters of content and of a step
	maxSaid  = 200 // characters of an error
)

// excerpt returns s on one line, cut to limit characters.
func excerpt(s string, limit int) string {
	r := []rune(strings.ToValidUTF8(s, "\uFFFD"))
	for i, c := range r {
		if c < ' ' {
			r[i] = ' '
		}
	}
	if len(r) > limit {
		r = append(r[:limit-1], '…')
	}
	return string(r)
}
