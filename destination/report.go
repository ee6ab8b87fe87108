package destination

import "time"

// TestReport is the result of a connection test, step by step.
type TestReport struct {
	OK       bool       `json:"ok"`
	Steps    []TestStep `json:"steps"`
	Latency  Duration   `json:"latency"`
	Warnings []Warning  `json:"warnings,omitempty"` // what works now and will not for long
}

// TestStep is one step of a connection test: resolve, connect, tls, authenticate, write, delete.
type TestStep struct {
	Name    string   `json:"name"`
	OK      bool     `json:"ok"`
	Skipped bool     `json:"skipped,omitempty"` // not tested; Finding says why
	Finding string   `json:"finding,omitempty"` // what was seen, or what is wrong and what to do about it
	Latency Duration `json:"latency"`
}

// Warning says that something is about to change or to expire.
type Warning struct {
	Code    string    `json:"code"` // "certificate_expires", "client_certificate_expires"
	Message string    `json:"message"`
	Until   time.Time `json:"until,omitzero"` // when it stops working
}
