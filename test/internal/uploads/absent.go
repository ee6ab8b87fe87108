package uploads

import (
	"context"
	"net"
	"sync"
	"testing"
)

func listen(t testing.TB) net.Listener {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Refused is the URL of an address where nobody listens.
func Refused(t testing.TB) string {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return "http://" + l.Addr().String()
}

// Hanging is the URL of a server that takes connections and never answers.
func Hanging(t testing.TB) string {
	t.Helper()
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				<-ctx.Done()
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		group.Wait()
	})
	return "http://" + l.Addr().String()
}
