package dbtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// oldest is the oldest major version of PostgreSQL that the library supports.
const oldest = 13

// binaryPlaces are where packages put server programs outside of PATH: Debian
// and its kin, Red Hat's, and Homebrew on both of its prefixes.
var binaryPlaces = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/usr/local/pgsql/bin",
}

// installation is a directory with a PostgreSQL server's programs.
type installation struct {
	dir     string
	version string // as the program reports it: 15.18, 18beta1
	major   int
}

// find returns the installation in dir, if dir is not empty. Otherwise it returns
// the first one in PATH, or the newest in the usual places. The version is 13 or
// newer.
func find(ctx context.Context, dir string) (installation, error) {
	if dir != "" {
		in, err := inspect(ctx, dir)
		if err != nil {
			return installation{}, fmt.Errorf(
				"dbtest: no usable PostgreSQL server programs in %s (from Options.Binaries or %s): %w", dir,
				EnvBinaries, err,
			)
		}
		return in, nil
	}
	return search(ctx, filepath.SplitList(os.Getenv("PATH")), binaryPlaces)
}

func search(ctx context.Context, path, places []string) (installation, error) {
	var refused []error
	for _, dir := range path {
		in, err := inspect(ctx, dir)
		if err == nil {
			return in, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			refused = append(refused, err)
		}
	}
	var found []installation
	for _, place := range places {
		dirs, err := filepath.Glob(place)
		if err != nil {
			return installation{}, fmt.Errorf("dbtest: looking in %s: %w", place, err)
		}
		for _, dir := range dirs {
			in, err := inspect(ctx, dir)
			if err == nil {
				found = append(found, in)
			} else if !errors.Is(err, os.ErrNotExist) {
				refused = append(refused, err)
			}
		}
	}
	if len(found) == 0 {
		none := fmt.Errorf("dbtest: no PostgreSQL server programs (initdb and postgres, version %d or newer) "+
			"in PATH or the usual places: run scripts/setup, or install PostgreSQL's server package, "+
			"or set %s to their directory", oldest, EnvBinaries)
		return installation{}, errors.Join(append([]error{none}, refused...)...)
	}
	return slices.MaxFunc(found, func(a, b installation) int { return a.major - b.major }), nil
}

// inspect asks the programs in dir for their version. If there are none, its
// error wraps [os.ErrNotExist].
func inspect(ctx context.Context, dir string) (installation, error) {
	if dir == "" {
		return installation{}, os.ErrNotExist
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return installation{}, err
	}
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return installation{}, fmt.Errorf("%s in %s: %w", name, dir, os.ErrNotExist)
		}
	}
	program := filepath.Join(dir, "postgres")
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return installation{}, fmt.Errorf("running %s --version: %w", program, err)
	}
	version, major, err := parseVersion(string(out))
	if err != nil {
		return installation{}, fmt.Errorf("%s: %w", program, err)
	}
	if major < oldest {
		return installation{}, fmt.Errorf("%s is version %s: version %d or newer is needed", program, version, oldest)
	}
	return installation{dir: dir, version: version, major: major}, nil
}

var versionPattern = regexp.MustCompile(`^postgres \(PostgreSQL\) ((\d+)\S*)`)

func parseVersion(out string) (version string, major int, err error) {
	m := versionPattern.FindStringSubmatch(strings.TrimSpace(out))
	if m == nil {
		return "", 0, fmt.Errorf("cannot read a version from %q", out)
	}
	major, err = strconv.Atoi(m[2])
	return m[1], major, err
}
