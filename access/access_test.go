package access_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/deliverykit/delivery/access"
)

func TestByRole(t *testing.T) {
	t.Parallel()
	all := []access.Action{
		access.ReadDeliveries, access.ReadDestinations, access.Deliver, access.OperateDeliveries,
		access.OperateDestination, access.OperateQueue, access.WriteDestinations, access.ReadSecrets,
		access.ReadSecurity,
	}
	for role, n := range map[access.Role]int{access.Viewer: 2, access.Sender: 3, access.Operator: 6, access.Admin: 9, "king": 0, "": 0} {
		actor := access.Actor{ID: "a", Roles: map[string]access.Role{"acme": role}}
		got := 0
		for _, action := range all {
			err := access.ByRole().Authorize(t.Context(), actor, "acme", action)
			switch {
			case err == nil:
				got++
			case !errors.Is(err, access.ErrDenied):
				t.Errorf("%s, %s: %v", role, action, err)
			}
			if err := access.ByRole().Authorize(
				t.Context(), actor, "other", action,
			); !errors.Is(
				err,
				access.ErrForeign,
			) {
				t.Errorf("%s in another organization, %s: %v", role, action, err)
			}
		}
		if got != n {
			t.Errorf("%q may do %d things, want %d", role, got, n)
		}
	}
}

func TestActorIsCopied(t *testing.T) {
	t.Parallel()
	roles := map[string]access.Role{"acme": access.Viewer}
	ctx := access.WithActor(t.Context(), access.Actor{ID: "a", Roles: roles})
	roles["other"] = access.Admin
	if a, ok := access.ActorFrom(ctx); !ok || a.ID != "a" || len(a.Roles) != 1 {
		t.Errorf("got %+v, %t", a, ok)
	}
	if _, ok := access.ActorFrom(t.Context()); ok {
		t.Error("there is an actor in an empty context")
	}
}

func ExampleByRole() {
	actor := access.Actor{ID: "eve@example.com", Roles: map[string]access.Role{"acme": access.Viewer}}
	ctx := access.WithActor(context.Background(), actor)
	who, _ := access.ActorFrom(ctx)
	fmt.Println(access.ByRole().Authorize(ctx, who, "acme", access.ReadDestinations))
	fmt.Println(access.ByRole().Authorize(ctx, who, "acme", access.WriteDestinations))
	fmt.Println(access.ByRole().Authorize(ctx, who, "other", access.ReadDestinations))
	// Output:
	// <nil>
	// access: denied: the role "viewer" does not permit destinations.write
	// access: the actor does not belong to the organization
}
