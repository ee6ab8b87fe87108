package azure_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/azure"
	"github.com/deliverykit/delivery/test/internal/npm"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

// The account and the key that every Azurite has:
// https://learn.microsoft.com/azure/storage/common/storage-use-azurite
const (
	account    = "devstoreaccount1"
	accountKey = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
	mib        = 1 << 20
)

// server is the URL of the blob service of the one server of this process.
var server string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stop func()
	var err error
	server, stop, err = start(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stop()
	return m.Run()
}

// start runs an Azurite until stop, and returns the URL of its blob service.
func start(ctx context.Context, arguments ...string) (service string, stop func(), err error) {
	dir, err := npm.Install(ctx, "azurite", "node")
	if err != nil {
		return "", nil, err
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	_ = l.Close()
	work, err := os.MkdirTemp("", "azurite-*")
	if err != nil {
		return "", nil, err
	}
	arguments = append([]string{
		filepath.Join(dir, "node_modules", "azurite", "dist", "src", "blob", "main.js"),
		"--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", port,
		"--location", work,
	}, arguments...)
	cmd := exec.CommandContext(ctx, "node", arguments...)
	cmd.Dir = work
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = os.RemoveAll(work)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var dialer net.Dialer
		if c, err := dialer.DialContext(ctx, "tcp", address); err == nil {
			_ = c.Close()
			return "http://" + address + "/" + account, stop, nil
		}
		select {
		case err := <-ended:
			return "", nil, fmt.Errorf("azurite ended: %w: %s", err, out.String())
		case <-tick.C:
		}
	}
}

func admin(t testing.TB, name string) *container.Client {
	t.Helper()
	key, err := blob.NewSharedKeyCredential(account, accountKey)
	if err != nil {
		t.Fatal(err)
	}
	client, err := container.NewClientWithSharedKeyCredential(server+"/"+name, key, &container.ClientOptions{
		ClientOptions: policy.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

var containers atomic.Int32

// newContainer makes a container of its own.
func newContainer(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("container-%d", containers.Add(1))
	if _, err := admin(t, name).Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return name
}

func config(name string) azure.Config {
	return azure.Config{
		Account: account, Container: name, Endpoint: server, BlockSize: mib, Parallel: 2,
		Naming:      storage.Naming{Name: "{item}"},
		Credentials: azure.Credentials{Type: azure.SharedKey, AccountKey: destination.NewSecret(accountKey)},
	}
}

// object reads a blob, nil if it is not there.
func object(t testing.TB, in, name string) []byte {
	t.Helper()
	out, err := admin(t, in).NewBlobClient(name).DownloadStream(context.Background(), nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// staged says how many blocks wait for being committed.
func staged(t testing.TB, in, name string) int {
	t.Helper()
	out, err := admin(t, in).NewBlockBlobClient(name).GetBlockList(context.Background(), blockblob.BlockListTypeUncommitted, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(out.UncommittedBlocks)
}

func newFront(t testing.TB) *uploads.Front {
	t.Helper()
	return uploads.NewFront(t, strings.TrimSuffix(server, "/"+account), operationOf)
}

func operationOf(r *http.Request) string {
	switch comp := r.URL.Query().Get("comp"); {
	case comp == "block":
		return "Block"
	case comp == "blocklist" && r.Method == http.MethodPut:
		return "Commit"
	case comp == "blocklist":
		return "Blocks"
	}
	return r.Method
}

func throughFront(f *uploads.Front, name string) azure.Config {
	c := config(name)
	c.Endpoint = f.URL + "/" + account
	return c
}

// fail answers as the service does.
func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Ms-Error-Code", code)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>Of the test.`+"\n"+`RequestId:1</Message></Error>`, code)
}
