package local_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/local"
)

// The suite makes its handlers before it knows of a peer, so all peers share a directory, each with
// a folder of its own.
func TestConformance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	organization := filepath.Join(dir, "handlertest")
	if err := os.Mkdir(organization, 0o700); err != nil {
		t.Fatal(err)
	}
	var peers atomic.Int32
	folder := func(t testing.TB) string {
		t.Helper()
		name := fmt.Sprintf("peer-%d", peers.Add(1))
		if err := os.Mkdir(filepath.Join(organization, name), 0o700); err != nil {
			t.Fatal(err)
		}
		return name
	}
	blocked := func(prepare func(path string) error) func(t testing.TB) handlertest.Peer {
		return func(t testing.TB) handlertest.Peer {
			t.Helper()
			name := folder(t)
			if err := prepare(filepath.Join(organization, name, "in")); err != nil {
				t.Fatal(err)
			}
			return handlertest.Peer{Config: local.Config{Folder: name, Naming: storage.Naming{Name: "in/{item}"}}}
		}
	}
	handlertest.Run(t, handlertest.Harness{
		New:       func() handler.Handler { return local.New(dir) },
		Local:     true,
		NoSecrets: true,
		Peer: func(t testing.TB) handlertest.Peer {
			t.Helper()
			name := folder(t)
			return handlertest.Peer{
				Config: local.Config{
					Folder: name, FileMode: "0600", FolderMode: "0700",
					Naming: storage.Naming{Name: "{date}/{item}{ext}", IfExists: storage.Fail},
				},
				Received: func(req *handler.Request) [][]byte {
					matches, err := filepath.Glob(filepath.Join(organization, name, "*", req.ItemID+"*"))
					if err != nil {
						t.Fatal(err)
					}
					var all [][]byte
					for _, m := range matches {
						b, err := os.ReadFile(m)
						if err != nil {
							t.Fatal(err)
						}
						all = append(all, b)
					}
					return all
				},
			}
		},
		Faults: []handlertest.Fault{
			{Name: "file in place of a folder", Category: handler.Configuration, Peer: blocked(func(path string) error {
				return os.WriteFile(path, nil, 0o600)
			})},
			{Name: "link in place of a folder", Category: handler.Configuration, Peer: blocked(func(path string) error {
				return os.Symlink(t.TempDir(), path)
			})},
			{Name: "link to a sibling", Category: handler.Configuration, Peer: blocked(func(path string) error {
				if err := os.Mkdir(path+"-real", 0o700); err != nil {
					return err
				}
				return os.Symlink(filepath.Base(path)+"-real", path)
			})},
			{Name: "link that leads nowhere", Category: handler.Configuration, Peer: blocked(func(path string) error {
				return os.Symlink("nowhere", path)
			})},
		},
		Invalid: []handlertest.Invalid{
			{Name: "unknown field", Config: destination.As("local", `{"dir":"/etc"}`), Paths: []string{"dir"}},
			{Name: "outside", Config: local.Config{Folder: "../other"}, Paths: []string{"folder"}},
			{Name: "absolute", Config: local.Config{Folder: "/etc"}, Paths: []string{"folder"}},
			{Name: "reserved", Config: local.Config{Folder: "a/.delivery-x"}, Paths: []string{"folder"}},
			{
				Name: "everything at once",
				Config: local.Config{
					Folder: "a//b", FileMode: "4755", FolderMode: "0600",
					Naming: storage.Naming{Name: "{secret}", IfExists: "maybe"},
				},
				Paths: []string{"folder", "name", "if_exists", "file_mode", "folder_mode"},
			},
		},
	})
}
