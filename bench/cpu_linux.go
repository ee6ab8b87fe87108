package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// cpuSeconds returns the processor time that this process and a PostgreSQL server have used, the
// server by the number of its first process. It tells more than a rate where other things run
// beside.
func cpuSeconds(postmaster int) (own, server float64) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err == nil {
		own = float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		fields := processStat(file)
		if fields == nil {
			continue
		}
		pid := filepath.Base(filepath.Dir(file))
		switch strconv.Itoa(postmaster) {
		case fields[1]:
			server += seconds(fields, 11, 12)
		case pid: // with those of its children that have ended
			server += seconds(fields, 11, 12, 13, 14)
		}
	}
	return own, server
}

// parent is the process that started another.
func parent(pid int) int {
	fields := processStat("/proc/" + strconv.Itoa(pid) + "/stat")
	if fields == nil {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}

// processStat returns the fields of a stat file that follow the name of the program: state, parent,
// and so on, proc(5).
func processStat(file string) []string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	_, rest, ok := strings.Cut(string(raw), ") ")
	if !ok {
		return nil
	}
	return strings.Fields(rest)
}

// seconds adds up fields that count ticks of 10 ms: user and system time.
func seconds(fields []string, at ...int) (sum float64) {
	for _, i := range at {
		ticks, _ := strconv.ParseFloat(fields[i], 64)
		sum += ticks / 100
	}
	return sum
}
