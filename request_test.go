package delivery_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// hosts are the ways in which a host holds its database and begins a transaction.
var hosts = map[string]func(t *testing.T, db *sql.DB) (delivery.DB, delivery.Tx){
	"sql.Tx": func(t *testing.T, db *sql.DB) (delivery.DB, delivery.Tx) {
		return db, testkit.Try(db.BeginTx(t.Context(), nil)).Must(t)
	},
	"sqlx.Tx": func(t *testing.T, db *sql.DB) (delivery.DB, delivery.Tx) {
		x := sqlx.NewDb(db, "any")
		return x, testkit.Try(x.BeginTxx(t.Context(), nil)).Must(t)
	},
}

func eachHost(t *testing.T, test func(t *testing.T, db *sql.DB, begin func(t *testing.T, db *sql.DB) (delivery.DB, delivery.Tx))) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		for name, begin := range hosts {
			t.Run(name, func(t *testing.T) { test(t, db, begin) })
		}
	})
}

func TestDeliverTxCommitsOrVanishesWithTheHost(t *testing.T) {
	eachHost(t, func(t *testing.T, db *sql.DB, begin func(t *testing.T, db *sql.DB) (delivery.DB, delivery.Tx)) {
		db.SetMaxOpenConns(1) // another connection would wait for ever
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("tx-" + t.Name())
		testkit.Create(t, acme, destination.Spec{Default: true})
		for _, size := range []int{3, 200_000} {
			_, tx := begin(t, db)
			receipt := testkit.Try(acme.DeliverTx(testkit.Within(t, 20*time.Second), tx, delivery.Request{
				Payload: payload.Bytes("a", make([]byte, size)), IdempotencyKey: "k",
			})).Must(t)
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if _, err := acme.Status(t.Context(), receipt.ID); !errors.Is(err, delivery.ErrNotFound) {
				t.Errorf("after the rollback: %v", err)
			}
		}
		_, tx := begin(t, db)
		receipt := testkit.Try(acme.DeliverTx(testkit.Within(t, 20*time.Second), tx, delivery.Request{
			Payload: payload.Bytes("a", make([]byte, 200_000)), IdempotencyKey: "k",
		})).Must(t)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		testkit.Try(svc.ProcessDue(testkit.Within(t, 20*time.Second))).Must(t)
		if s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t); s.State != queue.Completed || f.Count() != 1 {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// Whatever is wrong with a request, the host's transaction goes on.
func TestRequestErrorLeavesTheTransactionUsable(t *testing.T) {
	eachHost(t, func(t *testing.T, db *sql.DB, begin func(t *testing.T, db *sql.DB) (delivery.DB, delivery.Tx)) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme-" + t.Name())
		d := testkit.Create(t, acme, destination.Spec{})
		foreign := testkit.Create(t, svc.Org("other"), destination.Spec{})
		testkit.Try(acme.Deliver(t.Context(), delivery.Request{
			Payload: payload.JSON(1), Destinations: []string{d.ID}, IdempotencyKey: "taken",
		})).Must(t)
		const unknown = "01890000-0000-7000-8000-000000000000"
		for name, c := range map[string]struct {
			req  delivery.Request
			want error
		}{
			"no payload":      {delivery.Request{Destinations: []string{d.ID}}, &destination.ValidationError{}},
			"unknown":         {delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID, unknown}}, delivery.ErrNotFound},
			"foreign":         {delivery.Request{Payload: payload.JSON(1), Destinations: []string{foreign.ID}}, delivery.ErrNotFound},
			"malformed id":    {delivery.Request{Payload: payload.JSON(1), Destinations: []string{"'; drop"}}, &destination.ValidationError{}},
			"no destinations": {delivery.Request{Payload: payload.JSON(1)}, delivery.ErrNoDestinations},
			"NUL": {delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID}, Metadata: map[string]string{"a": "\x00"}},
				&destination.ValidationError{}},
			"bad UTF-8": {delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID}, Topic: "\xff"}, &destination.ValidationError{}},
			"conflict":  {delivery.Request{Payload: payload.JSON(2), Destinations: []string{d.ID}, IdempotencyKey: "taken"}, &delivery.ConflictError{}},
			"stream":    {delivery.Request{Payload: payload.Reader("r", strings.NewReader("x")), Destinations: []string{d.ID}}, delivery.ErrStageFirst},
			"not staged": {delivery.Request{Payload: payload.Ref(payload.StagedSource, unknown), Destinations: []string{d.ID}},
				delivery.ErrNotFound},
			"no source":      {delivery.Request{Payload: payload.Ref("nowhere", "x"), Destinations: []string{d.ID}}, &destination.ValidationError{}},
			"unserializable": {delivery.Request{Payload: payload.JSON(func() {}), Destinations: []string{d.ID}}, &destination.ValidationError{}},
			"too large":      {delivery.Request{Payload: payload.Bytes("x", make([]byte, 11<<20)), Destinations: []string{d.ID}}, payload.ErrTooLarge},
			"params": {delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID},
				PerDestination: map[string]delivery.Override{d.ID: {Params: 1}}}, &destination.ValidationError{}},
			"past deadline": {delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID}, Deadline: time.Now().Add(-1)},
				&destination.ValidationError{}},
			"priority": {delivery.Request{Payload: payload.JSON(1), Destinations: []string{d.ID}, Priority: 6}, &destination.ValidationError{}},
		} {
			before := testkit.Count(t, db, "delivery_deliveries") + testkit.Count(t, db, "delivery_queue") + testkit.Count(t, db, "delivery_idempotency")
			_, tx := begin(t, db)
			_, err := acme.DeliverTx(t.Context(), tx, c.req)
			var validation *destination.ValidationError
			var conflict *delivery.ConflictError
			switch c.want.(type) { //nolint:errorlint // what the table names, as it stands there
			case *destination.ValidationError:
				if !errors.As(err, &validation) {
					t.Errorf("%s: %v", name, err)
				}
			case *delivery.ConflictError:
				if !errors.As(err, &conflict) || conflict.Key != "taken" {
					t.Errorf("%s: %v", name, err)
				}
			default:
				if !errors.Is(err, c.want) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if _, err := tx.ExecContext(t.Context(), "select 1"); err != nil {
				t.Errorf("%s: the transaction is not usable: %v", name, err)
			}
			if err := tx.Commit(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if after := testkit.Count(t, db, "delivery_deliveries") + testkit.Count(t, db, "delivery_queue") + testkit.Count(t, db, "delivery_idempotency"); after != before {
				t.Errorf("%s: %d rows were written", name, after-before)
			}
		}
	})
}

func TestIdempotencyKeys(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		svc := testkit.Service(t, db, &testkit.Fake{}, c.Option())
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		req := delivery.Request{Payload: payload.JSON("x"), IdempotencyKey: "key", Topic: "t"}
		first := testkit.Try(acme.Deliver(t.Context(), req)).Must(t)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		req.CorrelationID = "another"
		again := testkit.Try(acme.Deliver(t.Context(), req)).Must(t)
		if !again.Duplicate || again.ID != first.ID || len(again.Items) != 1 || again.Items[0] != first.Items[0] {
			t.Errorf("the same request gives %+v, first %+v", again, first)
		}
		other := req
		other.Topic = "u"
		var conflict *delivery.ConflictError
		if _, err := acme.Deliver(t.Context(), other); !errors.As(err, &conflict) || conflict.Delivery != first.ID {
			t.Errorf("another request gives %v", err)
		}
		if r := testkit.Try(withDefault(t, svc, "other").Deliver(t.Context(), req)).Must(t); r.Duplicate {
			t.Error("a key reaches into another organization")
		}
		c.Advance(25 * time.Hour)
		if r := testkit.Try(acme.Deliver(t.Context(), other)).Must(t); r.Duplicate || r.ID == first.ID {
			t.Errorf("after a day the key gives %+v", r)
		}
		c.Advance(25 * time.Hour)
		if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.KeysExpired != 2 {
			t.Errorf("maintenance did %+v", chores)
		}
	})
}

func withDefault(t *testing.T, svc *delivery.DeliveryService, name string) *delivery.Org {
	org := svc.Org(name)
	testkit.Create(t, org, destination.Spec{Default: true})
	return org
}

func TestDeliverManyIsAllOrNone(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{})
		def := testkit.Create(t, acme, destination.Spec{Default: true})
		req := func(key string, n int, ids ...string) delivery.Request {
			return delivery.Request{Payload: payload.JSON(n), IdempotencyKey: key, Destinations: ids}
		}
		rs := testkit.Try(acme.DeliverMany(t.Context(), []delivery.Request{
			req("a", 1, d.ID), req("b", 1), req("a", 1, d.ID), req("", 1, d.ID, def.ID),
		})).Must(t)
		if rs[0].Duplicate || !rs[2].Duplicate || rs[2].ID != rs[0].ID || rs[1].Items[0].Destination != def.ID || len(rs[3].Items) != 2 {
			t.Errorf("receipts are %+v %+v %+v %+v", rs[0], rs[1], rs[2], rs[3])
		}
		before := testkit.Count(t, db, "delivery_queue")
		if before != 4 {
			t.Errorf("%d items", before)
		}
		for name, reqs := range map[string][]delivery.Request{
			"conflict":              {req("", 1, d.ID), req("c", 1, d.ID), req("a", 2, d.ID)},
			"conflict in the batch": {req("", 1, d.ID), req("c", 1, d.ID), req("c", 2, d.ID)},
			"missing":               {req("", 1, d.ID), req("", 1, rs[0].ID)},
			"invalid":               {req("", 1, d.ID), {}},
		} {
			_, err := acme.DeliverMany(t.Context(), reqs)
			if err == nil || testkit.Count(t, db, "delivery_queue") != before || testkit.Count(t, db, "delivery_deliveries") != 3 {
				t.Errorf("%s: %v, and %d items", name, err, testkit.Count(t, db, "delivery_queue"))
			}
			tx := testkit.Try(db.BeginTx(t.Context(), nil)).Must(t)
			if _, err := acme.DeliverManyTx(t.Context(), tx, reqs); err == nil {
				t.Errorf("%s in a transaction: no error", name)
			}
			if err := tx.Commit(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if n := testkit.Count(t, db, "delivery_queue"); n != before || testkit.Count(t, db, "delivery_idempotency") != 2 {
				t.Errorf("%s in a transaction: %d items", name, n)
			}
		}
	})
}

func TestLargePayloads(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		content := make([]byte, 3<<20+17)
		_, _ = rand.Read(content)
		file := filepath.Join(t.TempDir(), "export.csv")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var tail []byte
		f := &testkit.Fake{Do: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			rc, err := r.Payload.OpenAt(ctx, 2<<20+5)
			if err != nil {
				return nil, err
			}
			defer rc.Close()
			tail, err = io.ReadAll(rc)
			return nil, err
		}}
		svc := testkit.Service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		staged := testkit.Try(acme.Stage(t.Context(), payload.File(file))).Must(t)
		if _, err := svc.Org("other").Deliver(t.Context(), delivery.Request{Payload: staged}); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("another organization's staged payload: %v", err)
		}
		for name, p := range map[string]payload.Payload{
			"file":   payload.File(file),
			"reader": payload.Reader("export.csv", bytes.NewReader(content)),
			"writer": payload.Writer("export.csv", func(w io.Writer) error { _, err := w.Write(content); return err }),
			"bytes":  payload.Bytes("export.csv", content),
			"staged": staged,
		} {
			f.Contents = nil
			receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: p})).Must(t)
			testkit.Try(svc.ProcessDue(t.Context())).Must(t)
			s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t)
			if s.State != queue.Completed || s.Payload.Size != int64(len(content)) || s.Payload.Name != "export.csv" ||
				!strings.HasPrefix(s.Payload.ContentType, "text/csv") {
				t.Errorf("%s: %s, payload %+v", name, testkit.Show(s), s.Payload)
			}
			if len(f.Contents) != 1 || f.Contents[0] != string(content) || !bytes.Equal(tail, content[2<<20+5:]) {
				t.Errorf("%s: the content differs", name)
			}
		}
		for name, p := range map[string]payload.Payload{
			"reader": payload.Reader("x", io.MultiReader(bytes.NewReader(content), failing{})),
			"panic":  payload.Writer("x", func(w io.Writer) error { _, _ = w.Write(content); panic("boom") }),
			"file":   payload.File(file + "x"),
		} {
			before := testkit.Count(t, db, "delivery_payload_chunks")
			if _, err := acme.Deliver(t.Context(), delivery.Request{Payload: p}); err == nil {
				t.Errorf("%s: no error", name)
			}
			if after := testkit.Count(t, db, "delivery_payload_chunks"); after != before {
				t.Errorf("%s: %d chunks are left", name, after-before)
			}
		}
		before := testkit.Count(t, db, "delivery_payload_chunks")
		for i, c := range []struct {
			destinations []string
			key          string
		}{{nil, "k"}, {nil, "k"}, {[]string{"01890000-0000-7000-8000-000000000000"}, ""}} {
			_, err := acme.Deliver(t.Context(), delivery.Request{
				Payload: payload.Reader("x", bytes.NewReader(content)), IdempotencyKey: c.key, Destinations: c.destinations,
			})
			if (err != nil) != (i == 2) {
				t.Errorf("request %d: %v", i, err)
			}
			if n := testkit.Count(t, db, "delivery_payload_chunks"); n != before+4 {
				t.Errorf("after request %d there are %d chunks more", i, n-before)
			}
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

func TestStagedPayloadsAreCollected(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		svc := testkit.Service(t, db, &testkit.Fake{}, c.Option())
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		used := testkit.Try(acme.Stage(t.Context(), payload.Bytes("a", []byte("used")))).Must(t)
		testkit.Try(acme.Stage(t.Context(), payload.Bytes("b", []byte("unused")))).Must(t)
		tx := testkit.Try(db.BeginTx(t.Context(), nil)).Must(t)
		receipt := testkit.Try(acme.DeliverTx(t.Context(), tx, delivery.Request{Payload: used})).Must(t)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.PayloadsDropped != 0 {
			t.Errorf("maintenance did %+v", chores)
		}
		c.Advance(25 * time.Hour)
		if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.PayloadsDropped != 1 {
			t.Errorf("maintenance did %+v", chores)
		}
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if s := testkit.Try(acme.Status(t.Context(), receipt.ID)).Must(t); s.State != queue.Completed {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

func TestPayloadThatStaysWithItsSource(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, delivery.WithSource("mem", testkit.MemorySource{"acme/1": "one"}))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		found := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Ref("mem", "1")})).Must(t)
		gone := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Ref("mem", "2")})).Must(t)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if s := testkit.Try(acme.Status(t.Context(), found.ID)).Must(t); s.State != queue.Completed || f.Contents[0] != "one" {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if s := testkit.Try(acme.Status(t.Context(), gone.ID)).Must(t); s.Items[0].Reason != queue.Permanent {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}
