package delivery_test

import (
	"testing"

	"github.com/deliverykit/delivery/internal/dbtest"
)

func TestMain(m *testing.M) { dbtest.Main(m) }
