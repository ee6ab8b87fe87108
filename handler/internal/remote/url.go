package remote

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// URL says what a configured URL may be: https, or http to a loopback address, and what the fields
// add.
type URL struct {
	Example   string // for the message about something else than a URL
	AllowHTTP bool   // plain http to any address
	HTTPHint  string // what permits plain http to other addresses, such as "set allow_http"; "" where nothing does
	Login     string // the field for a user and a password, which the URL must not hold
	Path      bool   // it may have a path
	Query     bool   // it may have a query
	MaxLength int    // in bytes; 0: no limit
}

// Check reports every fault of the URL in a config's field. No message quotes it: it may hold a
// credential where none belongs.
func (rules URL) Check(field, raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" || u.Scheme == "" {
		return destination.Invalid(field, "is not a URL; expected for example %q", rules.Example)
	}
	var errs []error
	invalid := func(format string, args ...any) { errs = append(errs, destination.Invalid(field, format, args...)) }
	if rules.MaxLength > 0 && len(raw) > rules.MaxLength {
		invalid("is longer than %d bytes", rules.MaxLength)
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		invalid("does not start with https://")
	case u.Scheme == "http" && !rules.AllowHTTP && !Loopback(u.Hostname()):
		hint := ""
		if rules.HTTPHint != "" {
			hint = ", or " + rules.HTTPHint
		}
		invalid("is plain http, which everyone on the way can read; use https%s", hint)
	}
	if u.Hostname() == "" {
		invalid("has no host")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			invalid("has a port that is not between 1 and 65535")
		}
	}
	if u.User != nil {
		invalid("holds a user or a password; put them into %s", rules.Login)
	}
	if !rules.Path && strings.Trim(u.Path, "/") != "" {
		invalid("has a path, which does not belong there")
	}
	if !rules.Query && (u.RawQuery != "" || u.ForceQuery) {
		invalid("has a query, which does not belong there")
	}
	if strings.Contains(raw, "#") {
		invalid("has a fragment (#...), which no server receives")
	}
	return errors.Join(errs...)
}

// Loopback reports whether a host is this machine itself. Whether it may be reached is up to the
// network policy.
func Loopback(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// CheckHost checks the host of a URL in a config's field against the network policy. It leaves an
// empty and a malformed URL to others.
func CheckHost(env handler.Env, field, raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || env.CheckHost == nil {
		return nil //nolint:nilerr // URL.Check reports it
	}
	if err := env.CheckHost(u.Hostname()); err != nil {
		return destination.Invalid(field, "%s", strings.TrimPrefix(err.Error(), "netguard: "))
	}
	return nil
}
