package maintenance

import (
	"context"

	"github.com/deliverykit/delivery/internal/audit"
	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/spool"
)

// Standard are the chores that every service has.
type Standard struct {
	Settings *settings.Settings
	Configs  *configs.Configs
	Spool    *spool.Spool
	Audit    *audit.Recorder
	Bus      *events.Bus
}

// Chores lists them in the order in which those on the database are done.
func (s Standard) Chores() []Chore {
	k := newChecks(s.Settings, s.Configs, s.Bus)
	all := []Chore{
		expireKeys(), expireStatistics(s.Settings), expireDeliveries(s.Settings), flushSecurityEvents(s.Audit),
		expireSecurityEvents(), deleteDrained(s.Bus), k.schedule(), k.tests(),
		collectPayloads(s.Spool, s.Settings.Payloads),
	}
	if s.Settings.Payloads != nil {
		all = append(all, collectOrphans(s.Spool, s.Settings.Payloads))
	}
	if s.Settings.Keys != nil {
		all = append(all, reseal(s.Configs, s.Settings.Keys))
	}
	for _, name := range s.Settings.TypeNames() {
		t := s.Settings.Types[name]
		if t.Upkeep != nil {
			all = append(all, upkeep(s.Configs, t))
		}
		if t.Remover != nil {
			all = append(all, removals(s.Configs, t))
		}
	}
	return all
}

// flushSecurityEvents stores the events of this process that wait to be stored.
func flushSecurityEvents(a *audit.Recorder) Chore {
	return Chore{Name: "security", Do: func(ctx context.Context, _ *Run) error { return a.Flush(ctx) }}
}
