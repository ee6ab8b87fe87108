package sqlite

import "fmt"

// InFlight are the statements that count what is in flight, by name.
func InFlight() map[string]string {
	return map[string]string{"in_flight": fmt.Sprintf(inFlight, "1, 2"), "in_flight_of": inFlightOf}
}

// Claim is the statement that reads what a claim takes.
func Claim() string { return claim }
