package sqlite

import (
	"embed"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

//go:embed queries/*.sql
var files embed.FS

// The static statements of the queue that do more than write one row. Each is a file in queries,
// which says what the statement does and what its parameters are. To try one in the sqlite3 shell,
// set its parameters with ".parameter set ?1 ..." first.
var (
	ranks                = query("ranks")
	walk                 = query("walk")
	claim                = query("claim")
	lease                = query("lease")
	bury                 = query("bury")
	reschedule           = query("reschedule")
	due                  = query("due")
	overdue              = query("overdue")
	pendingOfDelivery    = query("pending_of_delivery")
	pendingOfDestination = query("pending_of_destination")
	inFlightOf           = query("in_flight_of")
)

func query(name string) string { return sqlstore.ReadQuery(files, "queries/"+name+".sql") }
