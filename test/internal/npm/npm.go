// Package npm installs programs of the npm registry for tests, from a lock file.
package npm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Install puts what the lock file in dir names, checked against its hashes, into the user's cache,
// once, together with the other files of dir that are named. It returns the folder that then holds
// node_modules.
func Install(ctx context.Context, name, dir string, others ...string) (string, error) {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf(`%w: this test needs programs of npm; run "make test", whose set-up installs Node.js and npm`, err)
		}
	}
	digest := sha256.New()
	files := map[string][]byte{}
	for _, file := range append([]string{"package.json", "package-lock.json"}, others...) {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return "", err
		}
		files[file] = b
		sum := sha256.Sum256(b)
		digest.Write(sum[:])
	}
	if bytes.Contains(files["package-lock.json"], []byte(`"resolved"`)) {
		return "", errors.New("package-lock.json names a registry: write it with npm install --package-lock-only --omit-lockfile-registry-resolved")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "deliverykit-test")
	installed := filepath.Join(cache, name+"-"+hex.EncodeToString(digest.Sum(nil))[:16])
	if there(installed) {
		return installed, nil
	}
	if err := os.MkdirAll(cache, 0o750); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cache, name+"-") // beside where it is renamed to
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }()
	for file, b := range files {
		if err := os.WriteFile(filepath.Join(work, file), b, 0o600); err != nil {
			return "", err
		}
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	if err := os.Rename(work, installed); err != nil && !there(installed) { // else another run was faster
		return "", err
	}
	return installed, nil
}

func there(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "node_modules"))
	return err == nil
}
