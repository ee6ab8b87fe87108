//go:build !unix

package dbtest

import (
	"errors"
	"os/exec"
)

type account struct{}

func newAccount() (account, error) {
	return account{}, errors.New("a throwaway PostgreSQL server can be started on Unix only: set " + EnvURL +
		" to a server that runs")
}

func (account) hint() string { return "" }

func (account) tempDir() (string, error) { return "", errors.ErrUnsupported }

func (account) prepare(cmd *exec.Cmd, _ string) *exec.Cmd { return cmd }

func (p *process) quit() error { return p.cmd.Process.Kill() }
