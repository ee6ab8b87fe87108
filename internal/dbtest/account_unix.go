//go:build unix

package dbtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that a server runs as: the caller, or another user if the caller is root.
type account struct {
	name string
	as   *syscall.Credential // nil: the caller
}

func newAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			continue
		}
		return account{name: name, as: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, errors.New(
		"PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as: " +
			"run the tests as another user",
	)
}

// hint completes an error where the account is the likely cause of it.
func (a account) hint() string {
	if a.as == nil {
		return ""
	}
	return " as user " + a.name + " (who must be able to run it)"
}

// tempDir makes a directory that the account owns and can reach.
func (a account) tempDir() (string, error) {
	parent := os.TempDir()
	if a.as != nil && !reachable(parent) {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "delivery-postgres-")
	if err != nil {
		return "", fmt.Errorf("making a directory for the server: %w", err)
	}
	if a.as != nil {
		if err := os.Chown(dir, int(a.as.Uid), int(a.as.Gid)); err != nil {
			return "", errors.Join(fmt.Errorf("giving %s to user %s: %w", dir, a.name, err), os.Remove(dir))
		}
	}
	return dir, nil
}

// reachable reports whether any user may pass through dir and all folders above it.
func reachable(dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if up := filepath.Dir(dir); up != dir {
			dir = up
			continue
		}
		return true
	}
}

// prepare sets cmd to run as the account, in dir, in a session of its own and
// with only the environment that programs need to load: PostgreSQL's own
// variables would change what it does.
func (a account) prepare(cmd *exec.Cmd, dir string) *exec.Cmd {
	cmd.Dir = dir
	cmd.Env = []string{"LC_ALL=C"}
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH":
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: a.as}
	return cmd
}

// quit asks a postmaster for its immediate shutdown.
func (p *process) quit() error {
	return p.cmd.Process.Signal(syscall.SIGQUIT)
}
