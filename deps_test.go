package delivery_test

import (
	"os/exec"
	"strings"
	"testing"
)

// The root links no handler, no driver and no cloud SDK: a host pays for what it registers.
func TestDependencies(t *testing.T) {
	t.Parallel()
	for pkg, allowed := range map[string][]string{
		".": {"github.com/deliverykit/delivery", "github.com/cenkalti/backoff/v4", "github.com/google/uuid", "github.com/pressly/goose/v3",
			"github.com/tink-crypto/tink-go/v2", "github.com/mfridman/interpolate", "github.com/sethvargo/go-retry", "go.uber.org/multierr",
			"golang.org/x/crypto", "golang.org/x/sync", "golang.org/x/sys", "google.golang.org/protobuf"},
		"./handler":         {"github.com/deliverykit/delivery/", "github.com/cenkalti/backoff/v4"},
		"./handler/webhook": {"github.com/deliverykit/delivery/", "github.com/cenkalti/backoff/v4"},
		"./retry":           {"github.com/deliverykit/delivery/retry", "github.com/cenkalti/backoff/v4"},
		"./payload":         {"github.com/deliverykit/delivery/payload"},
		"./queue":           {"github.com/deliverykit/delivery/queue"},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, dep := range strings.Fields(string(out)) {
			ok := false
			for _, prefix := range allowed {
				ok = ok || strings.HasPrefix(dep, prefix)
			}
			if strings.Contains(dep, "deliverykit/delivery/handler/") && pkg != "./handler/webhook" || pkg != "." && strings.Contains(dep, "/internal/") {
				ok = false
			}
			if !ok {
				t.Errorf("%s links %s", pkg, dep)
			}
		}
	}
}
