package sqlstore

import (
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// ItemID names an item of a delivery.
func ItemID(delivery string, n int) string { return delivery + "-" + strconv.Itoa(n) }

// ParseItemID takes an item's id apart.
func ParseItemID(id string) (delivery string, n int, ok bool) {
	at := strings.LastIndexByte(id, '-')
	if at < 0 {
		return "", 0, false
	}
	delivery, ok = CanonicalID(id[:at])
	number, err := strconv.ParseInt(id[at+1:], 10, 16)
	return delivery, int(number), ok && err == nil && number > 0
}

// CanonicalID returns an id of a delivery or destination in the form it is stored in.
func CanonicalID(id string) (string, bool) {
	if len(id) != 36 {
		return "", false
	}
	u, err := uuid.Parse(id)
	return u.String(), err == nil
}

// Excerpt returns at most limit bytes of s, as text that every database takes.
func Excerpt(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return Storable(s)
}
