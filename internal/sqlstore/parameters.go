package sqlstore

import (
	"fmt"
	"strconv"
	"strings"
)

// Numbers writes numbers as a list. No two drivers agree on a list as a parameter.
func Numbers(nos []int64) string {
	b := make([]byte, 0, 8*len(nos))
	for i, no := range nos {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, no, 10)
	}
	return string(b)
}

// Placeholders adds values to the parameters in args, and returns the list of their placeholders.
func Placeholders(args []any, values []string) (list string, all []any) {
	marks := make([]string, len(values))
	for i, v := range values {
		args = append(args, v)
		marks[i] = fmt.Sprintf("$%d", len(args))
	}
	return strings.Join(marks, ", "), args
}

// Among returns the condition that an id is one of ids, and the parameters of a statement: the
// organization, then ids. There has to be at least one id.
func Among(organization string, ids []string) (in string, args []any) {
	args = append(make([]any, 0, len(ids)+1), organization)
	marks := make([]string, len(ids))
	for i, id := range ids {
		args = append(args, id)
		marks[i] = fmt.Sprintf("$%d", i+2)
	}
	if len(ids) == 1 {
		return `= $2`, args
	}
	return `in (` + strings.Join(marks, ", ") + `)`, args
}
