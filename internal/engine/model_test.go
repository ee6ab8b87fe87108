package engine_test

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	_ "github.com/lib/pq"
	_ "modernc.org/sqlite"
	"pgregory.net/rapid"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/queuestore/postgres"
	"github.com/deliverykit/delivery/internal/queuestore/sqlite"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// Whatever two processes and their callers do: what the database holds is what a simple model says,
// row by row.
func TestQueueAgreesWithModel(t *testing.T) {
	t.Parallel()
	transitions := 1000
	if os.Getenv("DELIVERY_SOAK") == "1" {
		transitions = 100_000
	}
	for name, open := range map[string]func(t *testing.T) (*sql.DB, database){
		"sqlite": func(t *testing.T) (*sql.DB, database) {
			return migrated(t, "sqlite", dbtest.SQLite(t)), sqlite.Native{}
		},
		"postgres": func(t *testing.T) (*sql.DB, database) {
			return migrated(t, "postgres", dbtest.Postgres(t)), postgres.Native{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, dialect := open(t)
			made := 0
			for made < transitions {
				rapid.Check(t, func(rt *rapid.T) {
					if made >= transitions && !rt.Failed() {
						return
					}
					m := newModel(rt, db, dialect)
					actions := m.actions()
					for name, action := range actions {
						actions[name] = func(rt *rapid.T) {
							m.t = rt
							action(rt)
							made++
							m.compare()
						}
					}
					rt.Repeat(actions)
				})
				if t.Failed() {
					return
				}
			}
			t.Logf("%d transitions", made)
		})
	}
}

func migrated(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	svc, err := delivery.New(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

const modelLease = 30 * time.Second

// model is what the queue should be.
type model struct {
	t       *rapid.T
	ctx     context.Context //nolint:containedctx // of one check
	store   *queuestore.Store
	now     time.Time
	cap     int // of each organization, in flight; 0: none
	engines []*engine.Engine
	leases  [][]queuestore.Claimed // by process: also those that it has lost without having seen that
	granted map[int64]time.Time    // until when, by lease

	abandoned int64 // the last lease that was made up for what was abandoned

	destinations  []*modelDestination
	organizations []string
	paused        map[string]bool // by organization, "" for all
	items         map[sqlstore.Key]*modelItem
	seq           int64 // the highest so far
}

type modelDestination struct {
	*sqlstore.DestinationRow
	paused bool
}

// modelItem is an item. Its key in the map has no fence.
type modelItem struct {
	Key           sqlstore.Key
	Lane, Seq     int64
	State         queue.State
	RunAt         time.Time
	Deadline      time.Time
	Attempt, Lost int
	Cancel        queue.Reason
	Gate          queuestore.Gate
	Records       int   // in its history
	lease         int64 // 0 unless it is being attempted
	destination   *modelDestination
	moved         bool // to the end of its lane
}

// database is all that differs between databases.
type database interface {
	sqlstore.Dialect
	queuestore.Native
}

func newModel(t *rapid.T, db *sql.DB, dialect database) *model {
	m := &model{
		t: t, ctx: t.Context(), now: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC),
		cap:           rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "cap"),
		organizations: []string{"acme", "other"}, paused: map[string]bool{}, items: map[sqlstore.Key]*modelItem{},
		leases: make([][]queuestore.Claimed, 2), granted: map[int64]time.Time{},
	}
	m.store = queuestore.New(sqlstore.New(db, dialect, func() time.Time { return m.now }), dialect)
	m.write(func(tx *sqlstore.Tx) error {
		for _, table := range []string{
			"queue", "leases", "attempts", "dead_letters", "deliveries", "gates", "health", "organizations", "destinations",
		} {
			if _, err := tx.ExecContext(m.ctx, "delete from delivery_"+table); err != nil {
				return err
			}
		}
		for i, limits := range []destination.Limits{{}, {}, {Concurrency: 2}, {Ordered: true}} {
			d := &sqlstore.DestinationRow{Destination: destination.Destination{
				Organization: m.organizations[i%2], ID: newID(t), Type: "fake", Label: fmt.Sprint(i),
				Config: json.RawMessage(`{}`), Limits: limits,
			}}
			if err := tx.InsertDestination(m.ctx, d); err != nil {
				return err
			}
			m.destinations = append(m.destinations, &modelDestination{DestinationRow: d})
		}
		return nil
	})
	for range m.leases {
		m.engines = append(m.engines, m.process())
	}
	return m
}

// process is a new one, which knows nothing.
func (m *model) process() *engine.Engine {
	h := handler.Func(func(context.Context, *handler.Request, struct{}) (*handler.Result, error) { return nil, nil })
	b := settings.NewBuilder()
	b.Dialect, b.Workers, b.Lease = m.store.Dialect, 8, modelLease
	b.Types = map[string]*settings.Type{"fake": settings.NewType("fake", h)}
	b.Breaker = retry.Breaker{Off: true}.Or(retry.DefaultBreaker())
	b.OrganizationConcurrency = m.cap
	b.Logger = slog.New(slog.DiscardHandler)
	b.Clock = func() time.Time { return m.now }
	b.SlowLook = rapid.SampledFrom([]time.Duration{time.Nanosecond, time.Hour}).Draw(m.t, "slow look")
	return engine.New(b.Build(), m.store, events.NewBus(b.Clock))
}

func newID(t *rapid.T) string {
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func (m *model) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) write(fn func(tx *sqlstore.Tx) error) {
	m.t.Helper()
	m.check(m.store.Commit(m.ctx, sqlstore.Commit{Do: func(_ context.Context, tx *sqlstore.Tx) error { return fn(tx) }}))
}

func place(k sqlstore.Key) sqlstore.Key {
	k.Fence = 0
	return k
}

// draw returns one of all, and skips the action where there is none.
func draw[T any](t *rapid.T, what string, all []T) T {
	if len(all) == 0 {
		t.Skip("no " + what)
	}
	return rapid.SampledFrom(all).Draw(t, what)
}

func (m *model) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"enqueue":  m.enqueue,
		"enqueue2": m.enqueue,
		"claim":    m.claim,
		"claim2":   m.claim,
		"finish":   m.finish,
		"finish2":  m.finish,
		"prolong":  m.prolong,
		"abandon":  m.abandon,
		"crash": func(t *rapid.T) {
			i := rapid.IntRange(0, len(m.engines)-1).Draw(t, "process")
			m.engines[i], m.leases[i] = m.process(), nil
		},
		"poison": func(t *rapid.T) { // leases are lost, one after another
			for range 3 {
				m.claim(t)
				m.now = m.now.Add(modelLease)
				m.sweep(t)
				m.compare()
			}
		},
		"sweep":  m.sweep,
		"cancel": m.cancel,
		"pause":  m.pause,
		"retry":  m.retry,
		"time": func(t *rapid.T) {
			by := []time.Duration{time.Second, modelLease / 2, modelLease, time.Hour}
			m.now = m.now.Add(rapid.SampledFrom(by).Draw(t, "time"))
		},
	}
}

func (m *model) enqueue(t *rapid.T) {
	organization := draw(t, "organization", m.organizations)
	var batch []queuestore.NewDelivery
	for range rapid.IntRange(1, 3).Draw(t, "deliveries") {
		d := queuestore.NewDelivery{DeliveryRow: sqlstore.DeliveryRow{
			Organization: organization, ID: newID(t), Priority: rapid.IntRange(-1, 1).Draw(t, "priority"),
			Payload: sqlstore.Payload{Info: payload.Info{Size: 2, SHA256: fmt.Sprintf("%064x", 1)}, Inline: []byte("{}")},
		}, MaxDestinations: 50}
		d.CreatedAt = m.now
		if rapid.IntRange(0, 4).Draw(t, "later") == 0 {
			by := []time.Duration{-time.Second, 0, time.Second, time.Minute}
			d.NotBefore = m.now.Add(rapid.SampledFrom(by).Draw(t, "not before"))
		}
		if rapid.IntRange(0, 4).Draw(t, "deadline") == 0 {
			d.Deadline = m.now.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Minute}).Draw(t, "until"))
		}
		for _, dest := range m.destinations {
			if dest.Organization == organization && rapid.Bool().Draw(t, "to") {
				d.Items = append(d.Items, queuestore.NewItem{Destination: dest.ID, Priority: d.Priority, NotBefore: d.NotBefore})
			}
		}
		if len(d.Items) > 0 {
			batch = append(batch, d)
		}
	}
	if len(batch) == 0 {
		t.Skip("no destinations")
	}
	m.write(func(tx *sqlstore.Tx) error {
		_, err := m.store.Enqueue(m.ctx, tx, organization, m.now, batch)
		return err
	})
	for _, d := range batch {
		for i, it := range d.Items {
			item := &modelItem{
				Key:   sqlstore.Key{Organization: organization, Delivery: d.ID, N: i + 1},
				State: queue.Ready, RunAt: m.now, Deadline: d.Deadline, moved: true,
			}
			if d.NotBefore.After(m.now) {
				item.State, item.RunAt = queue.Scheduled, d.NotBefore
			}
			item.destination = m.destinations[slices.IndexFunc(m.destinations, func(x *modelDestination) bool {
				return x.ID == it.Destination
			})]
			item.Lane = queuestore.Lane(queuestore.Rank(it.Priority), item.destination.No)
			m.items[item.Key] = item
		}
	}
}

// held reports whether nothing of a destination may be attempted.
func (m *model) held(d *modelDestination) bool {
	return d.paused || m.paused[d.Organization] || m.paused[""]
}

// room is how much of a destination may be in flight yet.
func (m *model) room(d *modelDestination) int {
	room, all := 1000, 0
	inFlight := 0
	for _, it := range m.items {
		if it.Gate != queuestore.Open && (it.State == queue.Processing || it.State == queue.Scheduled) && it.destination == d {
			inFlight++
		}
		if it.State == queue.Processing && it.destination.Organization == d.Organization {
			all++
		}
	}
	switch {
	case d.Limits.Ordered:
		room = 1 - inFlight
	case d.Limits.Concurrency > 0:
		room = d.Limits.Concurrency - inFlight
	}
	if m.cap > 0 {
		room = min(room, m.cap-all)
	}
	return max(0, room)
}

// ready lists what is ready, by lane and in its order.
func (m *model) ready() map[int64][]*modelItem {
	lanes := map[int64][]*modelItem{}
	for _, it := range m.items {
		if it.State == queue.Ready {
			lanes[it.Lane] = append(lanes[it.Lane], it)
		}
	}
	for _, lane := range lanes {
		slices.SortFunc(lane, func(a, b *modelItem) int { return cmp.Compare(a.Seq, b.Seq) })
	}
	return lanes
}

func (m *model) claim(t *rapid.T) {
	p := rapid.IntRange(0, len(m.engines)-1).Draw(t, "process")
	limit := rapid.IntRange(1, 12).Draw(t, "limit")
	exact := rapid.Bool().Draw(t, "exact")
	waits := func(no int64) (n int, stalled bool) {
		for _, c := range m.leases[p] {
			if queuestore.DestinationOf(c.Lane) == no {
				n++
			}
		}
		return n, false
	}
	lanes := m.ready()
	claimable := false
	for _, lane := range lanes {
		d := lane[0].destination
		waiting, _ := waits(d.No)
		claimable = claimable || !m.held(d) && m.room(d) > 0 && waiting < 3*limit
	}
	var got []queuestore.Claimed
	var lease int64
	for more := true; more && len(got) == 0; { // the first times it does not know the destinations
		var err error
		got, lease, more, err = m.engines[p].Claim(m.ctx, limit, waits, exact)
		m.check(err)
	}
	switch {
	case len(got) > limit:
		t.Fatalf("%d items were claimed, where %d were asked for", len(got), limit)
	case exact && claimable && len(got) == 0:
		t.Fatalf("nothing was claimed of %d lanes", len(lanes))
	}
	for _, c := range got {
		it := m.items[place(c.Key)]
		if it == nil || it.State != queue.Ready || it.Key != c.Key {
			t.Fatalf("%+v was claimed, which is %+v", c.Key, it)
		}
		if lanes[it.Lane][0] != it {
			t.Fatalf("%+v was claimed before %+v", it, lanes[it.Lane][0])
		}
		lanes[it.Lane] = lanes[it.Lane][1:]
		d := it.destination
		if m.held(d) {
			t.Fatalf("%+v was claimed, whose destination is held", it)
		}
		if m.room(d) == 0 {
			t.Fatalf("%+v was claimed, and there is no room", it)
		}
		if c.Attempt != it.Attempt || c.Lost != it.Lost || !c.Deadline.Equal(it.Deadline) {
			t.Fatalf("claimed %+v of %+v", c, it)
		}
		it.State, it.lease, it.Gate = queue.Processing, lease, queuestore.Open
		switch {
		case d.Limits.Ordered:
			it.Gate = queuestore.Ordered
		case d.Limits.Concurrency > 0 || m.cap > 0:
			it.Gate = queuestore.Limited
		}
	}
	m.leases[p] = append(m.leases[p], got...)
	if len(got) > 0 {
		m.granted[lease] = m.now.Add(modelLease)
	}
}

// finish records the outcomes of some leases of a process, whether they are its own still or not.
func (m *model) finish(t *rapid.T) {
	p := rapid.IntRange(0, len(m.engines)-1).Draw(t, "process")
	if len(m.leases[p]) == 0 {
		t.Skip("it holds nothing")
	}
	n := rapid.IntRange(1, min(4, len(m.leases[p]))).Draw(t, "items")
	leases := rapid.Permutation(m.leases[p]).Draw(t, "leases")
	var outcomes []*queuestore.Outcome
	for _, c := range leases[:n] {
		o := &queuestore.Outcome{No: queuestore.DestinationOf(c.Lane), Breaker: retry.Breaker{Off: true}}
		o.Key, o.Number, o.Took = c.Key, c.Attempt+1, time.Millisecond
		if it := m.items[place(c.Key)]; it != nil {
			o.Destination = it.destination.ID
		}
		switch rapid.IntRange(0, 4).Draw(t, "outcome") {
		case 0, 1:
			o.State = queue.Delivered
		case 2:
			o.State, o.Reason = queue.Dead, queue.Permanent
			o.Failure = &sqlstore.Failure{Category: handler.Remote, Text: "no"}
		case 3:
			o.State, o.Reason, o.Charge = queue.Scheduled, queue.Backoff, true
			o.Delay = rapid.SampledFrom([]time.Duration{time.Second, time.Minute}).Draw(t, "delay")
		case 4:
			o.State, o.Reason, o.Took, o.Number = queue.Ready, queue.Released, sqlstore.NotBegun, 0
		}
		outcomes = append(outcomes, o)
	}
	m.leases[p] = leases[n:]
	var f queuestore.Finished
	m.write(func(tx *sqlstore.Tx) (err error) {
		if f, err = m.store.Finish(m.ctx, tx, outcomes); err != nil {
			return err
		}
		return queuestore.Drop(m.ctx, tx, m.last(outcomes))
	})
	for i, o := range outcomes {
		it := m.items[place(o.Key)]
		own := it != nil && it.Key == o.Key && !it.State.Ended()
		if f.Applied[i] != own {
			t.Fatalf("applied is %t for %+v at %+v", f.Applied[i], o, it)
		}
		if own {
			m.applied(it, o)
		}
	}
}

// last lists the leases that outcomes end, as the process sees it, which knows only of the items
// that are under them still.
func (m *model) last(outcomes []*queuestore.Outcome) (leases []int64) {
	left := map[int64]int{}
	for _, it := range m.items {
		left[it.lease]++
	}
	for _, o := range outcomes {
		if it := m.items[place(o.Key)]; it.Key == o.Key && it.lease != 0 {
			if left[it.lease]--; left[it.lease] == 0 {
				leases = append(leases, it.lease)
				delete(m.granted, it.lease)
			}
		}
	}
	return leases
}

// applied is what an outcome makes of an item.
func (m *model) applied(it *modelItem, o *queuestore.Outcome) {
	if o.State.Ended() {
		m.end(it, o.State)
		return
	}
	if !o.Silent() {
		it.Records++
	}
	if it.Cancel != queue.None {
		it.Key.Fence++
		m.end(it, queue.Cancelled)
		return
	}
	it.State, it.RunAt = o.State, m.now.Add(o.Delay)
	m.back(it)
	if o.Charge {
		it.Attempt++
	}
}

// back is what every item has in common that goes back into the queue from a lease.
func (m *model) back(it *modelItem) {
	it.Key.Fence++
	it.lease = 0
	if it.Gate != queuestore.Ordered {
		it.Gate, it.moved = queuestore.Open, true
	}
}

func (m *model) end(it *modelItem, state queue.State) {
	it.State, it.lease = state, 0
	it.Records++
}

// prolong prolongs a process's leases, also those that have ended.
func (m *model) prolong(t *rapid.T) {
	p := rapid.IntRange(0, len(m.engines)-1).Draw(t, "process")
	var ids []int64
	wantFlagged := map[sqlstore.Key]queue.Reason{}
	for _, c := range m.leases[p] {
		it := m.items[place(c.Key)]
		if it.Key != c.Key || it.lease == 0 {
			continue
		}
		if !slices.Contains(ids, it.lease) {
			ids = append(ids, it.lease)
		}
		if it.Cancel != queue.None {
			wantFlagged[it.Key] = it.Cancel
		}
	}
	slices.Sort(ids)
	gone := int64(-1) // a lease that nobody has
	var held map[int64]bool
	flagged := map[sqlstore.Key]queue.Reason{}
	m.write(func(tx *sqlstore.Tx) (err error) {
		if held, err = queuestore.Prolong(m.ctx, tx, append(ids, gone), m.now.Add(modelLease)); err != nil {
			return err
		}
		of, err := queuestore.Flagged(m.ctx, tx, ids)
		for _, c := range of {
			if it := m.items[place(c.Key)]; it.Key == c.Key && m.holds(p, c.Key) {
				flagged[c.Key] = c.Cancel
			}
		}
		return err
	})
	for _, id := range ids {
		m.granted[id] = m.now.Add(modelLease)
		if !held[id] {
			t.Fatalf("lease %d is not held, with items under it", id)
		}
	}
	if held[gone] {
		t.Fatal("a lease is held that nobody has")
	}
	if !maps.Equal(flagged, wantFlagged) {
		t.Fatalf("to cancel %v, want %v", flagged, wantFlagged)
	}
}

// holds reports whether a process has leased an item.
func (m *model) holds(p int, k sqlstore.Key) bool {
	return slices.ContainsFunc(m.leases[p], func(c queuestore.Claimed) bool { return c.Key == k })
}

// abandon takes an item out of its lease, whether it is the process's still or not.
func (m *model) abandon(t *rapid.T) {
	p := rapid.IntRange(0, len(m.engines)-1).Draw(t, "process")
	c := draw(t, "lease", m.leases[p])
	m.abandoned++
	id := m.abandoned
	m.write(func(tx *sqlstore.Tx) error { return queuestore.Abandon(m.ctx, tx, id, []sqlstore.Key{c.Key}) })
	if it := m.items[place(c.Key)]; it.Key == c.Key && it.lease != 0 {
		it.lease = id
		m.granted[id] = m.now
	}
}

func (m *model) sweep(t *rapid.T) {
	m.check(draw(t, "process", m.engines).Sweep(m.ctx))
	for _, it := range m.items {
		late := !it.Deadline.IsZero() && !it.Deadline.After(m.now)
		switch due := !it.RunAt.After(m.now); {
		case it.State.Ended():
		case it.State == queue.Processing && m.granted[it.lease].After(m.now):
		case late:
			m.end(it, queue.Dead)
		case it.State == queue.Scheduled && due:
			it.State, it.moved = queue.Ready, it.Gate != queuestore.Ordered
		case it.State != queue.Processing:
		case it.Cancel != queue.None:
			m.end(it, queue.Cancelled)
		case it.Lost == 2:
			m.end(it, queue.Dead)
		default:
			it.State, it.RunAt = queue.Ready, m.now
			it.Lost++
			it.Records++
			m.back(it)
		}
	}
}

func (m *model) cancel(t *rapid.T) {
	k := draw(t, "item", m.pending())
	n := 0
	m.write(func(tx *sqlstore.Tx) (err error) {
		n, err = m.store.CancelPending(m.ctx, tx, k.Organization, k.Delivery, 0, queue.Requested)
		return err
	})
	for _, it := range m.items {
		if it.Key.Delivery != k.Delivery || it.State.Ended() {
			continue
		}
		n--
		if it.State == queue.Processing {
			it.Cancel = queue.Requested
		} else {
			m.end(it, queue.Cancelled)
		}
	}
	if n != 0 {
		t.Fatalf("%d more were cancelled than there are", n)
	}
}

// pending lists the items that have not ended.
func (m *model) pending() []sqlstore.Key {
	var keys []sqlstore.Key
	for k, it := range m.items {
		if !it.State.Ended() {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b sqlstore.Key) int {
		return cmp.Or(cmp.Compare(a.Delivery, b.Delivery), cmp.Compare(a.N, b.N))
	})
	return keys
}

func (m *model) pause(t *rapid.T) {
	paused := rapid.IntRange(0, 2).Draw(t, "pause") == 0
	if rapid.Bool().Draw(t, "one") {
		d := draw(t, "destination", m.destinations)
		m.write(func(tx *sqlstore.Tx) error {
			_, err := tx.PauseDestination(m.ctx, d.Organization, d.ID, paused)
			return err
		})
		d.paused = paused
		return
	}
	name := draw(t, "organization", append([]string{""}, m.organizations...))
	m.write(func(tx *sqlstore.Tx) error { return tx.PauseOrganization(m.ctx, name, paused) })
	m.paused[name] = paused
}

// retry puts an organization's dead letters back.
func (m *model) retry(t *rapid.T) {
	organization := draw(t, "organization", m.organizations)
	var letters []queuestore.DeadLetterRow
	m.write(func(tx *sqlstore.Tx) (err error) {
		page := queuestore.DeadPage{Limit: 1000, Lock: true}
		if letters, err = queuestore.DeadLetters(m.ctx, tx, organization, queuestore.DeadFilter{}, page); err != nil {
			return err
		}
		return m.store.Revive(m.ctx, tx, letters)
	})
	n := 0
	for _, it := range m.items {
		if it.State != queue.Dead || it.Key.Organization != organization {
			continue
		}
		n++
		*it = modelItem{
			Key: it.Key, Lane: it.Lane, Seq: it.Seq, State: queue.Ready, RunAt: m.now, Deadline: it.Deadline,
			Records: it.Records + 1, destination: it.destination, moved: true,
		}
		it.Key.Fence += 2
	}
	if n != len(letters) {
		t.Fatalf("%d dead letters, want %d", len(letters), n)
	}
}

// compare reads all that is stored. The model learns the numbers that it does not foresee: those of
// items that moved to the end of their lane, which are above all before.
func (m *model) compare() {
	stored := map[sqlstore.Key]*modelItem{}
	dead := map[sqlstore.Key]bool{}
	leases := map[int64]time.Time{}
	var highest int64
	m.check(m.store.Read(m.ctx, func(ctx context.Context, tx *sqlstore.Tx) error {
		err := tx.Query(ctx, func(rows *sql.Rows) error {
			var it modelItem
			err := rows.Scan(&it.Key.Organization, &it.Key.Delivery, &it.Key.N, &it.Key.Fence, &it.Lane, &it.Seq, &it.State,
				&it.Attempt, &it.Lost, &it.Cancel, &it.Gate, sqlstore.Time{T: &it.RunAt}, sqlstore.Time{T: &it.Deadline})
			stored[place(it.Key)] = &it
			return err
		}, `select organization_id, delivery_id, n, fence, lane, seq, case when lease <> 0 then 1 else state end,
			attempt, lost, cancel, gated, run_at, deadline from delivery_queue`)
		if err != nil {
			return err
		}
		err = tx.Query(ctx, func(rows *sql.Rows) error {
			var k sqlstore.Key
			var records int
			var end queue.State
			err := rows.Scan(&k.Organization, &k.Delivery, &k.N, &records, &end)
			if stored[k] == nil {
				stored[k] = &modelItem{Key: k, State: end}
			}
			stored[k].Records = records
			return err
		}, `select organization_id, delivery_id, n, count(*), (select l.state from delivery_attempts l
			where l.organization_id = a.organization_id and l.delivery_id = a.delivery_id and l.n = a.n
			order by fence desc limit 1)
			from delivery_attempts a group by organization_id, delivery_id, n`)
		if err != nil {
			return err
		}
		err = tx.Query(ctx, func(rows *sql.Rows) error {
			var k sqlstore.Key
			err := rows.Scan(&k.Organization, &k.Delivery, &k.N, &k.Fence)
			dead[k] = true
			return err
		}, `select organization_id, delivery_id, n, fence from delivery_dead_letters`)
		if err != nil {
			return err
		}
		return tx.Query(ctx, func(rows *sql.Rows) error {
			var id int64
			var until time.Time
			err := rows.Scan(&id, sqlstore.Time{T: &until})
			leases[id] = until
			return err
		}, `select id, until from delivery_leases`)
	}))
	want := map[sqlstore.Key]*modelItem{}
	wantDead := map[sqlstore.Key]bool{}
	for k, it := range m.items {
		if it.State == queue.Dead {
			wantDead[it.Key] = true
		}
		if it.State.Ended() {
			want[k] = &modelItem{Key: k, State: it.State, Records: it.Records}
			continue
		}
		if now := stored[k]; now != nil {
			if it.moved && now.Seq > m.seq {
				it.Seq, it.moved = now.Seq, false
			}
			highest = max(highest, now.Seq)
		}
		want[k] = it
	}
	m.seq = max(m.seq, highest)
	if diff := gocmp.Diff(want, stored, cmpopts.IgnoreUnexported(modelItem{})); diff != "" {
		m.t.Fatalf("the model, and what is stored:\n%s", diff)
	}
	if !maps.Equal(dead, wantDead) {
		m.t.Fatalf("dead letters %v, want %v", dead, wantDead)
	}
	for id, until := range leases {
		if !until.Equal(m.granted[id]) {
			m.t.Fatalf("lease %d is held until %s, want %s", id, until, m.granted[id])
		}
	}
	for _, it := range m.items {
		if _, held := leases[it.lease]; it.lease != 0 && !held {
			m.t.Fatalf("lease %d is gone, with %+v under it", it.lease, it)
		}
		if it.moved && !it.State.Ended() {
			m.t.Fatalf("%+v did not move to the end of its lane", it)
		}
	}
}
