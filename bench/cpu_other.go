//go:build !linux

package main

// Processor times are not known on this system.

func cpuSeconds(int) (own, server float64) { return 0, 0 }

func parent(int) int { return 0 }
