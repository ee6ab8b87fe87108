package dbtest_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/dbtest"
)

// fakeInstallation makes a directory whose programs only tell a version. A
// shell writes them: were this process to, another test's child could still
// hold the file open for writing, and running it would fail.
func fakeInstallation(t *testing.T, dir, version string) string {
	t.Helper()
	const script = `mkdir -p "$1" && cd "$1" && for p in initdb postgres; do
		printf '#!/bin/sh\necho "%s (PostgreSQL) %s"\n' "$p" "$2" >"$p" && chmod +x "$p" || exit 1
	done`
	if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", script, "sh", dir, version).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

func TestSearch(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	in := func(name string) string { return filepath.Join(root, name) }
	empty := t.TempDir()
	fakeInstallation(t, in("9.6"), "9.6.24")
	fakeInstallation(t, in("13"), "13.22")
	fakeInstallation(t, in("17"), "17.2 (Debian 17.2-1)")
	fakeInstallation(t, in("18"), "18beta1")
	odd := fakeInstallation(t, filepath.Join(t.TempDir(), "odd"), "unknown")
	for _, tc := range []struct {
		name    string
		path    []string
		places  []string
		want    string
		version string
		says    string
	}{
		{name: "newest of the places", places: []string{in("1?"), in("9*")}, want: in("18"), version: "18beta1"},
		{name: "PATH before the places", path: []string{"", empty, in("13"), in("17")}, places: []string{in("*")}, want: in("13"), version: "13.22"},
		{name: "too old in PATH", path: []string{in("9.6")}, places: []string{in("17")}, want: in("17"), version: "17.2"},
		{name: "nothing", path: []string{empty}, places: []string{in("none*")}, says: "scripts/setup"},
		{name: "only too old", path: []string{in("9.6")}, says: "version 13 or newer"},
		{name: "no version to read", places: []string{odd}, says: "cannot read a version"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir, version, err := dbtest.Search(t.Context(), tc.path, tc.places)
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("got %s, %v; want an error with %q", dir, err, tc.says)
				}
				return
			}
			if err != nil || dir != tc.want || version != tc.version {
				t.Errorf("got %s version %s, %v; want %s version %s", dir, version, err, tc.want, tc.version)
			}
		})
	}
}

func TestFindInAGivenDirectoryLooksNowhereElse(t *testing.T) {
	t.Parallel()
	if dir, err := dbtest.Find(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), dbtest.EnvBinaries) {
		t.Errorf("got %s, %v; want an error that names %s", dir, err, dbtest.EnvBinaries)
	}
	want := fakeInstallation(t, filepath.Join(t.TempDir(), "bin"), "16.4")
	if got, err := dbtest.Find(t.Context(), want); err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	version, major, err := dbtest.ParseVersion("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n")
	if err != nil || version != "15.18" || major != 15 {
		t.Errorf("got %s, %d, %v; want 15.18, 15", version, major, err)
	}
}
