package destination

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Subscription selects the requests with Subscribers set that go to a destination: those that match
// every field that is set. The zero Subscription selects none.
type Subscription struct {
	Topics   []string          `json:"topics,omitempty"`   // one of these patterns fits; see MatchTopic
	Tags     []string          `json:"tags,omitempty"`     // the request has one of these
	Metadata map[string]string `json:"metadata,omitempty"` // the request has all of these
}

// IsZero reports whether there is no subscription.
func (s Subscription) IsZero() bool {
	return len(s.Topics) == 0 && len(s.Tags) == 0 && len(s.Metadata) == 0
}

// Matches reports whether the subscription selects a request with this topic, tags and metadata.
func (s Subscription) Matches(topic string, tags []string, metadata map[string]string) bool {
	if s.IsZero() {
		return false
	}
	if len(s.Topics) > 0 && !MatchTopics(s.Topics, topic) {
		return false
	}
	if len(s.Tags) > 0 && !slices.ContainsFunc(s.Tags, func(t string) bool { return slices.Contains(tags, t) }) {
		return false
	}
	for k, v := range s.Metadata {
		if got, ok := metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Validate reports every bad field, joined.
func (s Subscription) Validate() error {
	const maxTags, maxMetadata = 32, 16
	errs := []error{ValidateTopics("topics", s.Topics)}
	if len(s.Tags) > maxTags {
		errs = append(errs, Invalid("tags", "has %d tags, at limit %d are allowed", len(s.Tags), maxTags))
	}
	for i, tag := range s.Tags {
		errs = append(errs, Require(fmt.Sprintf("tags[%d]", i), tag))
	}
	if len(s.Metadata) > maxMetadata {
		errs = append(
			errs,
			Invalid("metadata", "has %d entries, at limit %d are allowed", len(s.Metadata), maxMetadata),
		)
	}
	return errors.Join(errs...)
}

var pattern = regexp.MustCompile(`^[A-Za-z0-9_.:/@*-]{1,200}$`)

// ValidateTopics reports every element that is not a pattern of topics.
func ValidateTopics(path string, patterns []string) error {
	const limit = 64
	if len(patterns) > limit {
		return Invalid(path, "has %d patterns, at limit %d are allowed", len(patterns), limit)
	}
	var errs []error
	for i, p := range patterns {
		if !pattern.MatchString(p) {
			errs = append(errs, Invalid(fmt.Sprintf("%s[%d]", path, i),
				`is not a pattern; expected for example "report.finished", "report.*" or "*": `+
					`up to 200 letters, digits and . _ : / @ - and *`))
		}
	}
	return errors.Join(errs...)
}

// MatchTopics reports whether one of the patterns matches a topic.
func MatchTopics(patterns []string, topic string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return MatchTopic(p, topic) })
}

// MatchTopic reports whether a topic matches a pattern. Each * in the pattern stands for any
// characters, also for none and for dots: "report.*" matches "report.finished" and
// "report.daily.failed", "*" matches every topic, also "".
func MatchTopic(pattern, topic string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == topic
	}
	rest, ok := strings.CutPrefix(topic, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}
