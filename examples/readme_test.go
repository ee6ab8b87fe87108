package examples_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// block is Go code in the README that names the file it is from.
var block = regexp.MustCompile("(?s)<!-- (examples/[^ ]+) -->\n```go\n(.*?)```")

// What the README shows is code that compiles: each block stands in the file that it names, word
// for word.
func TestReadmeShowsTheExamples(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := block.FindAllStringSubmatch(string(readme), -1)
	if all := strings.Count(string(readme), "```go\n"); len(blocks) != all || all == 0 {
		t.Errorf("README.md has %d blocks of Go, and %d name the file under examples/ that they are from", all, len(blocks))
	}
	for _, b := range blocks {
		file, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(b[1])))
		if err != nil {
			t.Error(err)
		} else if !strings.Contains(string(file), b[2]) {
			t.Errorf("README.md shows code that is not in %s as it is there:\n%s", b[1], b[2])
		}
	}
}
