package netguard

import (
	"context"
	"net"
	"net/netip"
)

// Prefixes gives the blocks that the zero policy closes.
func Prefixes() []netip.Prefix {
	var prefixes []netip.Prefix
	for _, b := range blocks {
		if b.class != public {
			prefixes = append(prefixes, b.prefix)
		}
	}
	return prefixes
}

// Control runs the check of the dialer on an address with port, without
// dialling it.
func (g *Guard) Control(address string) error {
	return g.control(context.Background(), "tcp", address, nil)
}

func (g *Guard) SetResolver(r *net.Resolver) { g.dialer.Resolver = r }
