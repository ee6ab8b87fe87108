package queuestore

import (
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"

	"github.com/deliverykit/delivery/queue"
)

// Lowest is the rank of the lowest priority. The highest priority has rank 0.
const Lowest = 10

// LongAgo is earlier than any time that is stored. Nothing changes it.
var LongAgo = time.Unix(0, 0).UTC()

// Lane returns the lane of a rank and a destination's number. Items are claimed by lane: it holds
// those of one destination that have one priority.
func Lane(rank, no int64) int64 { return rank<<32 | no }

// DestinationOf returns the number of a lane's destination.
func DestinationOf(lane int64) int64 { return lane & (1<<32 - 1) }

// RankOf returns the rank of a lane.
func RankOf(lane int64) int64 { return lane >> 32 }

// Rank returns the rank of a priority. Priorities go from 5, the highest, to -5.
func Rank(priority int) int64 { return int64(5 - priority) }

// Share is the part of a claim that one lane gets.
type Share struct {
	Lane  int64
	N     int // items at most
	Gate  Gate
	Floor int64 // the first seq to look at: items below it are claimed already
}

// Gate says how the items of a lane are claimed. Its values are stored.
type Gate int

// The gates.
const (
	Open    Gate = 0 // without a limit
	Limited Gate = 1 // up to a number in flight or a rate
	Ordered Gate = 2 // in strict order: an item keeps its place through its retries
)

// Claimed is an item of the queue. A claim does not set State, Cancel and RunAt. Only a claim sets
// Content and Place.
type Claimed struct {
	sqlstore.Key
	Lane, Seq int64
	Content   *sqlstore.DeliveryRow // what is delivered; nil: it is gone
	State     queue.State
	Attempt   int          // attempts so far that count
	Lost      int          // leases lost
	Cancel    queue.Reason // why it is to be cancelled; None: it is not
	Gate      Gate
	RunAt     time.Time
	Deadline  time.Time
	Place     string // where its row is as long as it does not change; "" if the database has no such thing
}

// Change returns an item to the queue.
type Change struct {
	sqlstore.Key
	State  queue.State // Ready or Scheduled
	RunAt  time.Time
	Charge bool // the attempt counts
	Lost   bool // the lease was lost
}

// Changed is an item that a Change was applied to, or one that is to be cancelled.
type Changed struct {
	sqlstore.Key
	Cancel queue.Reason // why it is to be cancelled; None: it is not
}
