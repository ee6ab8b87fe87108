package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// memoryTable prints how much memory this process has while it accepts and delivers so many items,
// and how much of it is in use after a collection.
func memoryTable(ctx context.Context, e *env, n int) error {
	const most = 50_000 // that wait
	h, err := newHost(ctx, e, "postgres", 100, few)
	if err != nil {
		return err
	}
	fmt.Printf("\n| %-24s | %12s | %12s | %10s |\n|%s|%s\n", "delivered", "resident MiB", "in use MiB", "per second", strings.Repeat("-", 26),
		strings.Repeat(strings.Repeat("-", 13)+":|", 2)+strings.Repeat("-", 11)+":|")
	err = h.running(ctx, func() error {
		step, last := n/10, time.Now()
		for accepted, next := 0, step; next <= n; {
			done := int(h.done.Load())
			if done >= next {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				fmt.Printf("| %-24d | %12d | %12d | %10.0f |\n", next, resident()>>20, m.HeapAlloc>>20, float64(step)/time.Since(last).Seconds())
				next, last = next+step, time.Now()
			}
			if accepted-done > most || accepted >= n {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Millisecond):
				}
				continue
			}
			if err := h.fill(ctx, batch); err != nil {
				return err
			}
			accepted += batch
		}
		return nil
	})
	return errors.Join(err, h.close())
}

// resident is the memory that this process has, in bytes; 0 where that is not known.
func resident() int64 {
	raw, err := os.ReadFile("/proc/self/statm") // proc(5): total, resident, in pages
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw))
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
