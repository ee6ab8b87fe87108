package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "github.com/lib/pq"  // PostgreSQL: the host links the driver of its choice
	_ "modernc.org/sqlite" // SQLite in pure Go

	"github.com/deliverykit/delivery/handler/webhook"
)

// open opens the host's database, which the library never does.
func open(ctx context.Context, dir string) (db *sql.DB, closeDB func(), err error) {
	server := os.Getenv("DATABASE_URL")
	if server == "" {
		fmt.Println("database  SQLite, in a temporary folder")
		db, err = sql.Open("sqlite", "file:"+filepath.ToSlash(filepath.Join(dir, "quickstart.db"))+
			"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)")
		return db, func() { _ = db.Close() }, err
	}
	// Tables in a schema of its own do not touch what a real service may have in the same database.
	schema := "delivery_quickstart_" + strings.ToLower(rand.Text()[:8])
	u, err := url.Parse(server)
	if err != nil || !strings.HasPrefix(u.Scheme, "postgres") {
		// It is not quoted, because it may hold a password.
		return nil, nil, errors.New("DATABASE_URL is not of the form postgres://user:password@host/database")
	}
	query := u.Query()
	query.Set("search_path", schema)
	u.RawQuery = query.Encode()
	if db, err = sql.Open("postgres", u.String()); err != nil {
		return nil, nil, err
	}
	if _, err = db.ExecContext(ctx, "create schema "+schema); err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	fmt.Printf("database  PostgreSQL, in the schema %s, which is dropped at the end\n", schema)
	return db, func() {
		_, _ = db.ExecContext(context.WithoutCancel(ctx), "drop schema "+schema+" cascade")
		_ = db.Close()
	}, nil
}

// receiver is the other side, which knows webhook.Verify and nothing else of the library.
type receiver struct {
	url, refusing string
	listener      net.Listener
	server        *http.Server
	secrets       map[string]string // by path

	mu   sync.Mutex
	seen map[string][]seen // by message id, which is the same in all attempts at an item
}

// seen is what came with one request: the content's hash, and what is wrong with the signature.
type seen struct {
	sha256 string
	err    error
}

func listen(ctx context.Context) (*receiver, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	gone, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	r := &receiver{
		url: "http://" + l.Addr().String(), refusing: "http://" + gone.Addr().String(), listener: l,
		secrets: map[string]string{}, seen: map[string][]seen{},
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}
	return r, gone.Close() // so that nobody listens there
}

func (r *receiver) serve() { _ = r.server.Serve(r.listener) }

func (r *receiver) Close() { _, _ = r.server.Close(), r.listener.Close() }

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	secrets := []string{r.secrets[req.URL.Path]}
	body, err := webhook.VerifyRequest(req, secrets)
	sum := sha256.Sum256(body)
	if err == nil { // the counter-check: with one bit changed, it has to be refused
		body[0] ^= 1
		if !errors.Is(webhook.Verify(secrets, req.Header, body), webhook.ErrSignature) {
			err = errors.New("an altered copy of the request is accepted too")
		}
	}
	r.mu.Lock()
	id := req.Header.Get("Webhook-Id")
	r.seen[id] = append(r.seen[id], seen{hex.EncodeToString(sum[:]), err})
	attempts := len(r.seen[id])
	r.mu.Unlock()
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusUnauthorized)
	case req.URL.Path == "/flaky" && attempts < 3:
		http.Error(w, "out of order", http.StatusInternalServerError)
	}
}
