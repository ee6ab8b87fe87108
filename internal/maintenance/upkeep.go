package maintenance

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// upkeep has a handler clean up after its destinations, one after another, as far as its time goes.
func upkeep(c *configs.Configs, t *settings.Type) Chore {
	return Chore{
		Name:    "upkeep of " + t.Name,
		Every:   time.Hour,
		Network: true,
		Do: func(ctx context.Context, r *Run) error {
			return r.EachDestination(ctx, t.Name, func(ctx context.Context, d *sqlstore.DestinationRow) error {
				config, err := c.Open(ctx, t, d)
				if err == nil {
					err = t.Maintain(
						ctx,
						&handler.MaintainRequest{Organization: d.Organization, DestinationID: d.ID, Config: config},
					)
				}
				if err == nil {
					r.Count(&r.Report.DestinationsMaintained, 1)
				}
				return err
			})
		},
	}
}
