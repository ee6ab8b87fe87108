package azure_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/azure"
	"github.com/deliverykit/delivery/payload"
)

const secret = "c2VjcmV0L2NhbmFyeSswODE1"

func configAt(endpoint string) azure.Config {
	return azure.Config{
		Account: "acmeexports", Container: "exports", Endpoint: endpoint,
		Credentials: azure.Credentials{Type: azure.SharedKey, AccountKey: destination.NewSecret(secret)},
	}
}

func TestBlockSizes(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct{ size, want, given int64 }{
		{-1, 4 * mib, 0}, {0, 4 * mib, 0}, {5 << 30, 4 * mib, 0}, {200_000 * mib, 4 * mib, 0}, {200_000*mib + 1, 5 * mib, 0},
		{1, mib, mib}, {5 << 40, 105 * mib, mib}, {-1, 64 * mib, 64 * mib},
	} {
		if got := azure.BlockSize(azure.Config{BlockSize: c.given}, c.size); got != c.want || c.size > 0 && (c.size+got-1)/got > 50_000 {
			t.Errorf("%d: %d, want %d", c.size, got, c.want)
		}
	}
}

// All ids of a blob must be equally long, and say which content they are of.
func TestBlockIDs(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, n := range []int{0, 1, 255, 256, 49_999} {
		for _, sum := range []uint64{0, 1, 1 << 63} {
			id := azure.BlockID(n, sum)
			if len(id) != 16 || seen[id] {
				t.Errorf("%d, %d: %q", n, sum, id)
			}
			seen[id] = true
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	err := azure.New(nil, azure.WithManagedIdentity("me"), azure.WithCredential(nil), azure.WithTrustedEndpoint("http://example.com"),
		azure.WithAuthority("http://example.com"), azure.WithMemory(1), azure.WithDefaultCredentials(), azure.WithDefaultCredentials()).Open(handler.Env{})
	if err == nil || strings.Count(err.Error(), "\n") != 7 {
		t.Errorf("%v", err)
	}
	_, err = azure.New().Deliver(context.Background(), &handler.Request{Config: azure.Config{}})
	if e := handler.Classify(err); err == nil || e.Category != handler.Internal {
		t.Errorf("a handler that is not open: %v", err)
	}
}

func TestForeignHostsAreRefusedWhenDialled(t *testing.T) {
	t.Parallel()
	h := azure.New()
	req := handlertest.Request(t, h, configAt("http://127.0.0.1:1"), payload.JSON("x"))
	c, _ := req.Config.(azure.Config)
	c.Endpoint = "http://10.0.0.1:9000" // as if a name had changed its address since
	req.Config = c
	_, err := h.Deliver(t.Context(), req)
	if e := handler.Classify(err); err == nil || e.Category != handler.Configuration || e.WillRetry() {
		t.Errorf("%v", err)
	}
}

// The host's own identity is the host's to mend, wherever its tokens should have come from.
func TestNoIdentity(t *testing.T) {
	t.Parallel()
	h := azure.New(azure.WithManagedIdentity(""))
	c := configAt("")
	req := handlertest.Request(t, h, c, payload.JSON("x"))
	c.Credentials = azure.Credentials{Type: azure.ManagedIdentity}
	req.Config = c
	_, err := h.Deliver(t.Context(), req) // 169.254.169.254 is not open to handlers
	if e := handler.Classify(err); err == nil || e.Category != handler.Internal || !e.WillRetry() || errors.Is(err, context.Canceled) {
		t.Errorf("%s: %v", e.Category, err)
	}
}

func ExampleConfig() {
	config := azure.Config{
		Account: "acmeexports", Container: "exports",
		Credentials: azure.Credentials{Type: azure.ManagedIdentity},
		Naming:      storage.Naming{Name: "{year}/{month}/{topic}-{item}{ext}"},
		Tier:        "Cool",
	}
	fmt.Println(config.Validate())
	config.Container, config.BlockSize = "Exports", 1
	fmt.Println(config.Validate())
	// Output:
	// <nil>
	// container: is not a container name: 3 to 63 lower-case letters, digits and single hyphens
	// block_size: is not between 1048576 and 536870912 bytes
}
