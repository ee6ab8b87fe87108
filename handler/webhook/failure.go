package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/internal/redact"
)

func wrongConfig(config any) error {
	return handler.Fail(handler.Configuration, fmt.Errorf("webhook: the config is a %T, not a %T", config, Config{}))
}

// target names the request in errors, without its query.
func (a *attempt) target() string {
	u := *a.url
	u.RawQuery, u.ForceQuery = "", false
	return a.config.method() + " " + a.redact.Text(u.Redacted())
}

// refused classifies an answer that is no success; it returns nil for 2xx.
func (a *attempt) refused(resp *http.Response, excerpt string) error {
	text := fmt.Sprintf("webhook: %s answered %d", a.target(), resp.StatusCode)
	if status := http.StatusText(resp.StatusCode); status != "" {
		text += " " + status
	}
	switch location := resp.Header.Get("Location"); {
	case resp.StatusCode >= 300 && resp.StatusCode < 400 && location != "":
		text += ", a redirect, which is not followed"
		if u, err := a.url.Parse(location); err == nil {
			u.User, u.RawQuery, u.ForceQuery, u.Fragment = nil, "", false, ""
			text += fmt.Sprintf(
				"; it leads to %s: if that is right, make it the destination's URL",
				a.redact.Text(redact.Cut(u.String(), maxURL)),
			)
		}
	case excerpt != "":
		text += ": " + redact.Line(excerpt, maxErrorExcerpt)
	}
	return handler.FromHTTP(resp.StatusCode, resp.Header, errors.New(text))
}

// failed classifies an attempt that got no answer.
func (a *attempt) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		if errors.Is(cause, context.DeadlineExceeded) {
			return handler.Fail(handler.Timeout, fmt.Errorf("webhook: %s: %s within %s: %w",
				a.target(), a.phase(), time.Since(a.start).Round(time.Millisecond), cause))
		}
		return fmt.Errorf("webhook: %s: %w", a.target(), cause)
	}
	if err := remote.Known(ctx, err); err != nil {
		return err // of reading the payload
	}
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	hint := ""
	switch {
	case clientRefused(err):
		hint = a.clientHint()
	case errors.As(err, &certificate):
		hint = "the other side's TLS certificate is not accepted; its owner has to correct that"
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		hint = "the other side speaks plain http on this port"
	}
	return remote.Unanswered("webhook: "+a.target(), err, a.redact, hint)
}

// clientRefused recognises the alerts by which a server refuses a client certificate, or asks for
// one (RFC 8446, section 6.2; certificate_required is 116).
func clientRefused(err error) bool {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return false
	}
	alert := reflect.ValueOf(remote.Err) // of an unexported type of crypto/tls
	if alert.Kind() != reflect.Uint8 {
		return false
	}
	switch alert.Uint() {
	// bad, unsupported, revoked, expired, unknown, unknown authority, access denied, required
	case 42, 43, 44, 45, 46, 48, 49, 116:
		return true
	}
	return false
}

func (a *attempt) clientHint() string {
	if a.config.TLS.Certificate == "" {
		return "the other side wants a client certificate; set tls.certificate and tls.key"
	}
	return "the other side refuses the client certificate; check that it accepts the issuer of tls.certificate, " +
		"and that the intermediate certificates are there"
}

func (a *attempt) phase() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.config.Auth.Type == AuthOAuth2 && a.authorization == "":
		return "the token endpoint gave no token"
	case a.body == nil:
		return "the payload was not read"
	case a.remote == "":
		return "there was no connection"
	case !a.sent:
		return "the request was not taken"
	}
	return "there was no answer"
}
