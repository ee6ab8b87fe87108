package webhook_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

// forever writes the same again until the connection is gone.
func forever(c net.Conn, text string) {
	for {
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}

// bomb is a gzip of far more zeros than it has bytes.
func bomb(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.CopyN(w, zeros{}, 50<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Whatever the other side, or its token endpoint, answers: an attempt and a test end in time, and
// keep little of it.
func TestHostileReceivers(t *testing.T) {
	t.Parallel()
	const within = 3 * time.Second
	block := strings.Repeat("x", 4096)
	packed := bomb(t)
	for name, c := range map[string]struct {
		answer    func(c net.Conn)
		delivered bool
	}{
		"body without end": {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); forever(c, block) }, true},
		"chunks without end": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			forever(c, "1\r\nx\r\n")
		}, true},
		"chunk without end": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			forever(c, "f")
		}, true},
		"trailers without end": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
			forever(c, "A: b\r\n")
		}, true},
		"1xx without end":     {func(c net.Conn) { forever(c, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n") }, false},
		"100 without end":     {func(c net.Conn) { forever(c, "HTTP/1.1 100 Continue\r\n\r\n") }, false},
		"headers without end": {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"); forever(c, "A: "+block+"\r\n") }, false},
		"header without end":  {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nA: "); forever(c, block) }, false},
		"no header":           {func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<10)); _, _ = c.Read(make([]byte, 1)) }, false},
		"noise":               {func(c net.Conn) { forever(c, "\x00\xff\x1b[2J") }, false},
		"contradicting lengths": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
		}, false},
		"negative length": {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n") }, false},
		"status 999": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 999 \x1b[2J\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n")
		}, false},
		"status 000": {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 000 zero\r\nContent-Length: 0\r\n\r\n") }, false},
		"bomb": {func(c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(packed), packed)
		}, true},
		"control characters": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad\r\nContent-Length: 12\r\n\r\n\x00\x1b[31m\xff\r\nok\u2028")
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := rawServer(t, func(ctx context.Context, conn net.Conn) {
				readRequest(conn)
				c.answer(conn)
			})
			h := webhook.New()
			asToken := webhook.Config{URL: url, Auth: webhook.ClientCredentials(url+"/token", "id", "client-secret-0123456789")}
			for what, config := range map[string]webhook.Config{"receiver": {URL: url}, "token endpoint": asToken} {
				ctx, cancel := context.WithTimeout(t.Context(), within)
				defer cancel()
				start := time.Now()
				result, err := h.Deliver(ctx, handlertest.Request(t, h, config, payload.JSON(1)))
				if what == "receiver" && (err == nil) != c.delivered || what == "token endpoint" && err == nil {
					t.Errorf("%s: %v", what, err)
				}
				if err != nil && (len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x00\x1b\r\n") || strings.Contains(err.Error(), "client-secret")) {
					t.Errorf("%s: the error is %.2000q", what, err)
				}
				if result != nil && result.Exchange != nil && len(result.Exchange.ResponseBody) > 4096 {
					t.Errorf("%s: %d bytes were kept", what, len(result.Exchange.ResponseBody))
				}
				report, err := h.Test(ctx, &handler.TestRequest{Config: config})
				if err != nil || report.OK != (c.delivered && what == "receiver") && ctx.Err() == nil {
					t.Errorf("%s: tested with %+v, %v", what, report, err)
				}
				for _, s := range report.Steps {
					if len(s.Finding) > 1200 || strings.ContainsAny(s.Finding, "\x00\x1b\r\n") {
						t.Errorf("%s: found %.2000q", what, s.Finding)
					}
				}
				if took := time.Since(start); took > within+3*time.Second {
					t.Errorf("%s: it took %s", what, took)
				}
			}
		})
	}
}
