//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

var forwarded = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

// ownGroup makes the command the leader of a process group.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

// pass sends sig to p, or to the whole group that it leads.
func pass(p *os.Process, sig os.Signal, group bool) error {
	number, ok := sig.(syscall.Signal)
	if !group || !ok {
		return p.Signal(sig)
	}
	if err := syscall.Kill(-p.Pid, number); err != nil {
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return os.NewSyscallError("kill", err)
	}
	return nil
}

// signalled is the exit code that shells give to a command ended by a signal.
func signalled(exit *exec.ExitError) int {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return signalCode(status.Signal())
	}
	return exitRun
}

func signalCode(sig os.Signal) int {
	if number, ok := sig.(syscall.Signal); ok {
		return 128 + int(number)
	}
	return exitRun
}
