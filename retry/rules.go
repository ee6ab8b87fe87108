package retry

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
)

// A rule is a status code of the protocol ("404"), a hundred of them ("5xx"), or a category of
// failures as package handler names them ("rate limit").
var (
	statusRule  = regexp.MustCompile(`^[1-9][0-9]{2}$`)
	hundredRule = regexp.MustCompile(`^[1-9]xx$`)
	categories  = []string{
		"uncategorized", "configuration", "authentication", "validation", "conflict", "network", "timeout",
		"rate limit", "remote", "capacity", "internal",
	}
)

// Rule returns what RetryOn and StopOn say about a failure, if an entry was found. The most
// specific entry counts: a status before its hundred, and a hundred before the category. exact
// means that the status itself is listed.
func (p Policy) Rule(category string, status int) (again, exact, found bool) {
	names := []string{strconv.Itoa(status), strconv.Itoa(status/100) + "xx", category}
	for i, name := range names {
		if status == 0 && i < 2 {
			continue
		}
		for _, again := range []bool{true, false} {
			if slices.Contains(p.rules(again), name) {
				return again, i == 0, true
			}
		}
	}
	return false, false, false
}

func (p Policy) rules(again bool) []string {
	if again {
		return p.RetryOn
	}
	return p.StopOn
}

func (p Policy) badRules() (errs []error) {
	for _, again := range []bool{true, false} {
		field := map[bool]string{true: "retry_on", false: "stop_on"}[again]
		for _, rule := range p.rules(again) {
			switch {
			case !statusRule.MatchString(rule) && !hundredRule.MatchString(rule) && !slices.Contains(categories, rule):
				errs = append(
					errs,
					fmt.Errorf(
						`retry: %s: %q is not a status such as "404" or "5xx" and not one of the categories %q`,
						field,
						rule,
						categories,
					),
				)
			case again && slices.Contains(p.StopOn, rule):
				errs = append(errs, fmt.Errorf("retry: %q is both in retry_on and in stop_on", rule))
			}
		}
	}
	return errs
}
