// Package option applies the options of a handler.
package option

import "errors"

// Apply applies opts to target and returns their errors. New of a handler does not fail: it keeps
// them for Open.
func Apply[T any, O ~func(*T) error](pkg string, target *T, opts []O) (faults []error) {
	for _, o := range opts {
		if o == nil {
			faults = append(faults, errors.New(pkg+": an option is nil"))
		} else if err := o(target); err != nil {
			faults = append(faults, err)
		}
	}
	return faults
}
