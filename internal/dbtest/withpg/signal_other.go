//go:build !unix

package main

import (
	"os"
	"os/exec"
)

var forwarded = []os.Signal{os.Interrupt}

func ownGroup(*exec.Cmd) {}

func pass(p *os.Process, _ os.Signal, _ bool) error { return p.Kill() }

func signalled(*exec.ExitError) int { return exitRun }

func signalCode(os.Signal) int { return exitRun }
