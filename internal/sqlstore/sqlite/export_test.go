package sqlite

import "fmt"

// Counts are the statements that count what is in flight, by name.
func Counts() map[string]string {
	return map[string]string{"of destinations": fmt.Sprintf(inFlight, "1, 2"), "of an organization": inFlightOf}
}
