package local_test

import (
	"encoding/json"
	"fmt"

	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/local"
)

func ExampleConfig() {
	config := local.Config{
		Folder: "reports/daily",
		Naming: storage.Naming{Name: "{date}/{topic}-{item}{ext}"},
	}
	stored, _ := json.Marshal(config)
	fmt.Println(string(stored), config.Validate())

	config.Folder, config.FileMode = "../other", "0200"
	fmt.Println(config.Validate())
	// Output:
	// {"folder":"reports/daily","name":"{date}/{topic}-{item}{ext}"} <nil>
	// folder: has a segment that is empty, "." or ".."
	// file_mode: must contain 0600: the owner works with it
}
