package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// cpuSeconds returns the processor time that this process and all PostgreSQL processes of the machine have used: it tells
// more than a rate where other things run beside.
func cpuSeconds() (own, server float64) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err == nil {
		own = float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		head, rest, ok := strings.Cut(string(raw), ") ")
		if !ok || !strings.HasSuffix(head, "(postgres") {
			continue
		}
		fields := strings.Fields(rest)
		// utime, stime, and those of children that have ended, in ticks of 10 ms: proc(5).
		for _, i := range []int{11, 12, 13, 14} {
			ticks, _ := strconv.ParseFloat(fields[i], 64)
			server += ticks / 100
		}
	}
	return own, server
}
