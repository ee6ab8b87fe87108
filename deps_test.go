package delivery_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The root links no handler, no driver and no cloud SDK: a host pays for what it registers. A
// storage driver links its own SDK and no other's.
func TestDependencies(t *testing.T) {
	t.Parallel()
	storage := []string{"github.com/deliverykit/delivery/destination", "github.com/deliverykit/delivery/handler", "github.com/deliverykit/delivery/payload",
		"github.com/deliverykit/delivery/retry", "github.com/deliverykit/delivery/internal/redact", "github.com/cenkalti/backoff/v4", "golang.org/x/"}
	for pkg, allowed := range map[string][]string{
		".": {"github.com/deliverykit/delivery", "github.com/cenkalti/backoff/v4", "github.com/google/uuid", "github.com/pressly/goose/v3",
			"github.com/tink-crypto/tink-go/v2", "github.com/mfridman/interpolate", "github.com/sethvargo/go-retry", "go.uber.org/multierr",
			"golang.org/x/crypto", "golang.org/x/sync", "golang.org/x/sys", "google.golang.org/protobuf"},
		"./handler":         {"github.com/deliverykit/delivery/", "github.com/cenkalti/backoff/v4"},
		"./handler/webhook": {"github.com/deliverykit/delivery/", "github.com/cenkalti/backoff/v4", "golang.org/x/oauth2"},
		"./retry":           {"github.com/deliverykit/delivery/retry", "github.com/cenkalti/backoff/v4"},
		"./payload":         {"github.com/deliverykit/delivery/payload"},
		"./queue":           {"github.com/deliverykit/delivery/queue"},

		"./handler/storage":       storage,
		"./handler/storage/local": storage,
		"./handler/storage/s3":    slices.Concat(storage, []string{"github.com/aws/"}),
		"./handler/storage/azure": slices.Concat(storage, []string{"github.com/Azure/", "github.com/AzureAD/", "github.com/golang-jwt/", "github.com/google/uuid", "github.com/kylelemons/", "github.com/pkg/browser"}),
		// Google's library links its gRPC transport and that one's telemetry, whether they are used
		// or not.
		"./handler/storage/gcs": slices.Concat(storage, []string{"cloud.google.com/", "google.golang.org/", "github.com/GoogleCloudPlatform/", "github.com/google/",
			"github.com/googleapis/", "go.opentelemetry.io/", "github.com/go-logr/", "cel.dev/", "github.com/cespare/xxhash", "github.com/cncf/xds", "github.com/envoyproxy/",
			"github.com/felixge/httpsnoop", "github.com/go-jose/", "github.com/spiffe/"}),
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
			if inner, ours := strings.CutPrefix(dep, "github.com/deliverykit/delivery"); ours && !mayLink(pkg, "."+inner) {
				ok = false
			}
			if !ok {
				t.Errorf("%s links %s", pkg, dep)
			}
		}
	}
}

// mayLink reports whether a package of ours may link another: the root no handler's, a handler none
// beside those above and below it and what all handlers share, and none but the root what is
// internal to all, except for the one redactor.
func mayLink(pkg, dep string) bool {
	if strings.HasPrefix(dep, "./handler/") {
		return strings.HasPrefix(dep, pkg) && pkg != "." || strings.HasPrefix(pkg, dep+"/") ||
			strings.HasPrefix(dep, "./handler/internal/") && strings.HasPrefix(pkg, "./handler/")
	}
	return pkg == "." || !strings.HasPrefix(dep, "./internal/") || dep == "./internal/redact" && strings.HasPrefix(pkg, "./handler/")
}
