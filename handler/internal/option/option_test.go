package option_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/deliverykit/delivery/handler/internal/option"
)

func TestApply(t *testing.T) {
	t.Parallel()
	type opt func(*[]int) error
	add := func(n int) opt { return func(to *[]int) error { *to = append(*to, n); return nil } }
	bad := errors.New("bad")
	var got []int
	faults := option.Apply("pkg", &got, []opt{add(1), nil, func(*[]int) error { return bad }, add(2)})
	if !slices.Equal(got, []int{1, 2}) || len(faults) != 2 || faults[0].Error() != "pkg: an option is nil" || !errors.Is(faults[1], bad) {
		t.Errorf("%v, %v", got, faults)
	}
}
