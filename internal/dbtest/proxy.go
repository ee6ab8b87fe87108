package dbtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands in front of a PostgreSQL server. It can break a connection during
// a COMMIT, like a network that fails at that moment.
type Proxy struct {
	target string

	// Effective says that the server still gets the COMMIT, and only the answer
	// to the client is lost.
	Effective bool

	left  atomic.Int64 // commits until one is cut; 0: none is cut
	conns sync.WaitGroup
}

// NewProxy starts a proxy in front of the database at databaseURL, and returns
// the URL of the database through it. The proxy runs until the test ends.
func NewProxy(t testing.TB, databaseURL string) (p *Proxy, through string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p = &Proxy{target: u.Host}
	p.conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.conns.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		p.conns.Wait() // ends as clients close their connections
	})
	u.Host = l.Addr().String()
	return p, u.String()
}

// Cut breaks the connection of the nth COMMIT from now.
func (p *Proxy) Cut(nth int) { p.left.Store(int64(nth)) }

// Spare cancels the last Cut, and reports whether it was still pending.
func (p *Proxy) Spare() bool { return p.left.Swap(0) > 0 }

// due counts a COMMIT and reports whether it is the one to cut.
func (p *Proxy) due() bool {
	for {
		n := p.left.Load()
		if n == 0 {
			return false
		}
		if p.left.CompareAndSwap(n, n-1) {
			return n == 1
		}
	}
}

func (p *Proxy) serve(client net.Conn) {
	server, err := new(net.Dialer).DialContext(context.Background(), "tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	end := sync.OnceFunc(func() {
		_ = client.Close()
		_ = server.Close()
	})
	defer end()
	var silent atomic.Bool // the answers are dropped
	p.conns.Go(func() {
		defer end()
		_ = answers(client, server, &silent)
	})
	_ = p.requests(server, client, &silent)
}

// requests passes on what a client sends: a startup message without a type,
// then messages of the protocol's version 3.
func (p *Proxy) requests(server io.Writer, client io.Reader, silent *atomic.Bool) error {
	r := bufio.NewReader(client)
	for first := true; ; first = false {
		kind, raw, err := message(r, first)
		if err != nil {
			return err
		}
		if kind == 'Q' && strings.EqualFold(strings.Trim(string(raw[5:]), "\x00; "), "commit") && p.due() {
			if !p.Effective {
				return nil
			}
			silent.Store(true)
		}
		if _, err := server.Write(raw); err != nil {
			return err
		}
	}
}

// answers passes on the server's messages, up to the answer that the client must
// not receive.
func answers(client io.Writer, server io.Reader, silent *atomic.Bool) error {
	r := bufio.NewReader(server)
	for {
		kind, raw, err := message(r, false)
		if err != nil {
			return err
		}
		if silent.Load() {
			if kind == 'Z' { // ready for the next: the COMMIT has been done
				return nil
			}
			continue
		}
		if _, err := client.Write(raw); err != nil {
			return err
		}
	}
}

func message(r *bufio.Reader, startup bool) (kind byte, raw []byte, err error) {
	head := 5
	if startup {
		head = 4
	}
	raw = make([]byte, head, 512)
	if _, err := io.ReadFull(r, raw); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(raw[head-4:])
	if n < 4 || n > 1<<30 {
		return 0, nil, errors.New("dbtest: this is not a message of PostgreSQL's protocol")
	}
	raw = append(raw, make([]byte, n-4)...)
	_, err = io.ReadFull(r, raw[head:])
	return raw[0], raw, err
}
