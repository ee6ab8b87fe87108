package cloud

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/deliverykit/delivery/destination"
)

// CheckEndpoint checks the URL of a config's field: https, or http to a loopback address or where that is allowed, with no
// more than a host, unless it may have a path. No message quotes it: it may hold a credential where none belongs.
func CheckEndpoint(field, endpoint string, allowHTTP, mayHavePath bool) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Opaque != "" || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" {
		return destination.Invalid(field, `is no URL such as "https://storage.example.com"`)
	}
	var errs []error
	invalid := func(format string, args ...any) {
		errs = append(errs, destination.Invalid(field, format, args...))
	}
	if u.Scheme == "http" && !allowHTTP && !Loopback(u.Hostname()) {
		invalid("is plain http, where everyone on the way can read it; use https, or set allow_http")
	}
	if u.User != nil {
		invalid("holds a user or a password; they belong into credentials")
	}
	if !mayHavePath && strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(endpoint, "#") {
		invalid("has a path, a query or a fragment that does not belong there")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			invalid("has a port that is not between 1 and 65535")
		}
	}
	return errors.Join(errs...)
}

// Loopback recognises what never leaves the machine. Whether that may be reached is up to the network policy.
func Loopback(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}
