package systemtest_test

import (
	"os"
	"testing"

	"github.com/deliverykit/delivery/internal/dbtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
	}
	dbtest.Main(m)
}
