package netguard_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/deliverykit/delivery/internal/netguard"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen gives a TCP listener on loopback that counts what it accepts.
func listen(t *testing.T) (addr netip.AddrPort, accepted *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = new(atomic.Int32)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String()), accepted
}

func port(a netip.AddrPort) string { _, p, _ := net.SplitHostPort(a.String()); return p }

// answering is a resolver that gives a name one IPv4 address per question, in
// turn, and the last one for good. It answers over the stream form of DNS
// (RFC 1035, section 4.2.2).
func answering(t *testing.T, addrs ...string) *net.Resolver {
	t.Helper()
	var asked atomic.Int32
	return &net.Resolver{
		PreferGo: true,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer func() { _ = server.Close() }()
				var size [2]byte
				if _, err := io.ReadFull(server, size[:]); err != nil {
					return
				}
				msg := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(server, msg); err != nil {
					return
				}
				end := 12
				for msg[end] != 0 {
					end += int(msg[end]) + 1
				}
				end++
				isA := binary.BigEndian.Uint16(msg[end:]) == 1
				reply := append([]byte{}, msg[:end+4]...)
				copy(reply[2:], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0})
				if isA {
					i := min(int(asked.Add(1)), len(addrs)) - 1
					a := netip.MustParseAddr(addrs[i]).As4()
					reply[7] = 1
					reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
					reply = append(reply, a[:]...)
				}
				_, _ = server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
			}()
			return client, nil
		},
	}
}

func TestDialRefusesWhereANameLeads(t *testing.T) {
	t.Parallel()
	target, accepted := listen(t)
	g := netguard.New(netguard.Policy{})
	g.SetResolver(answering(t, "127.0.0.1"))

	if err := g.CheckHost("public.example"); err != nil {
		t.Fatalf("the name itself shows nothing: %v", err)
	}
	for _, network := range []string{"tcp", "tcp4"} {
		_, err := g.DialContext(t.Context(), network, net.JoinHostPort("public.example.", port(target)))
		blocked := asBlocked(t, network, err)
		if blocked.Address != "127.0.0.1" {
			t.Errorf("the error names %q, want the address dialled", blocked.Address)
		}
	}
	for _, literal := range []string{"127.0.0.1", "localhost", "", "::ffff:127.0.0.1"} {
		_, err := g.DialContext(t.Context(), "tcp", net.JoinHostPort(literal, port(target)))
		requireBlocked(t, literal, err)
	}
	if n := accepted.Load(); n != 0 {
		t.Errorf("the closed listener got %d connections", n)
	}
}

func TestDialRefusesARebind(t *testing.T) {
	t.Parallel()
	target, _ := listen(t)
	g := netguard.New(netguard.Policy{Loopback: true})
	g.SetResolver(answering(t, "127.0.0.1", "169.254.169.254"))
	address := net.JoinHostPort("rebind.example.", port(target))

	conn, err := g.DialContext(t.Context(), "tcp4", address)
	if err != nil {
		t.Fatalf("the first, open answer: %v", err)
	}
	_ = conn.Close()
	_, err = g.DialContext(t.Context(), "tcp4", address)
	requireBlocked(t, "the second answer", err)
}

func TestDialOnlyTCP(t *testing.T) {
	t.Parallel()
	g := netguard.New(everything)
	for _, network := range []string{"udp", "udp4", "ip4:icmp", "unix", "unixgram", "", "tcp5"} {
		_, err := g.DialContext(t.Context(), network, "127.0.0.1:9")
		requireBlocked(t, network, err)
	}
}

func TestDialHonoursContext(t *testing.T) {
	t.Parallel()
	target, _ := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := netguard.New(netguard.Policy{Loopback: true}).DialContext(ctx, "tcp", target.String())
	var blocked *netguard.BlockedError
	if err == nil || errors.As(err, &blocked) {
		t.Errorf("got %v, want the cancellation, not a refusal", err)
	}
}

func TestControlRefusesWhatIsNoAddress(t *testing.T) {
	t.Parallel()
	g := netguard.New(everything)
	for _, address := range []string{"", ":443", "example.com:443", "127.0.0.1"} {
		requireBlocked(t, address, g.Control(address))
	}
}
