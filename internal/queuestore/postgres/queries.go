package postgres

import (
	"embed"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

//go:embed queries/*.sql
var files embed.FS

// The static statements of the queue. Each is a file in queries, which says what the statement does
// and what its parameters are. To try one in psql, write "prepare q as" before it and then run
// "execute q(...)".
var (
	ranks                = query("ranks")
	walk                 = query("walk")
	claim                = query("claim")
	end                  = query("end")
	endPlaced            = query("end_placed")
	endDetailed          = query("end_detailed")
	endDetailedPlaced    = query("end_detailed_placed")
	appendAttempts       = query("append_attempts")
	reschedule           = query("reschedule")
	revive               = query("revive")
	due                  = query("due")
	overdue              = query("overdue")
	pendingOfDelivery    = query("pending_of_delivery")
	pendingOfDestination = query("pending_of_destination")
	inFlight             = query("in_flight")
	inFlightOf           = query("in_flight_of")
)

func query(name string) string { return sqlstore.ReadQuery(files, "queries/"+name+".sql") }
