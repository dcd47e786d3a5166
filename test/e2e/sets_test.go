package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/need"
)

// A set's snapshots by mkdir, cp, rmdir, mv, rm -r and jq.
func TestSetLifeFromAShell(t *testing.T) {
	need.Tool(t, "jq")
	m := Start(t, t.TempDir())
	out := m.Shell(t, `
		fails() { local want=$1; shift; if out=$("$@" 2>&1); then echo "$* worked"; elif [[ $out != *"$want"* ]]; then echo "$*: $out"; fi; }
		ask() { echo "$2" > "$1"; }
		put() { printf %s "$1" | dd of=d.vhds/raw conv=notrunc status=none; }
		echo path=d.vhds size=32M > .vhdfs/create
		put one
		exec 3<>d.vhds/raw
		mkdir d.vhds/snapshots/before
		put two
		head -c3 <&3; head -c3 d.vhds/snapshots/before/raw; echo
		cp d.vhds/snapshots/before/raw $IMAGES/copy.img; head -c3 $IMAGES/copy.img; echo
		fails 'File exists' mkdir d.vhds/snapshots/before
		fails 'File exists' ask d.vhds/snapshot before
		fails 'Invalid argument' ask d.vhds/snapshot 11111111-2222-3333-4444-555555555555
		fails 'Read-only file system' dd if=/dev/zero of=d.vhds/snapshots/before/raw count=1 conv=notrunc
		fails 'busy' ask d.vhds/snapshots/before/apply 1
		fails 'No such file' rmdir d.vhds/snapshots/never
		fails 'No such file' ask d.vhds/apply 11111111-2222-3333-4444-555555555555
		fails 'Operation not permitted' touch d.vhds/snapshots/file
		jq -r '.Label, .Type, (.ParentPathsList | length)' d.vhds/snapshots/before/info.json | xargs
		id=$(jq -r .SnapshotId d.vhds/snapshots/before/info.json)
		head -c3 d.vhds/snapshots/${id,,}/raw; echo
		mv d.vhds/snapshots/before d.vhds/snapshots/monday
		echo '{"Label":"tuesday"}' > d.vhds/snapshots/monday/info.json
		ls d.vhds/snapshots
		exec 3>&-
		echo keep=later > d.vhds/snapshots/tuesday/apply
		head -c3 d.vhds/raw; head -c3 d.vhds/snapshots/later/raw; echo
		fails 'Operation not permitted' rm -r d.vhds/snapshots/later
		fails 'not empty' rmdir d.vhds/snapshots/later
		head -c3 d.vhds/snapshots/later/raw; echo
		exec 4<d.vhds/snapshots/later/raw
		fails 'busy' ask d.vhds/snapshots/later/delete 1
		exec 4<&-
		ask d.vhds/snapshots/later/delete 1
		fails 'No such file' ask d.vhds/snapshots/later/delete 1
		ask d.vhds/delete tuesday
		jq -r '.OptimizeNeeded, (.AllPaths | length)' d.vhds/set.json | xargs
		exec 3<>d.vhds/raw
		ask d.vhds/optimize 1
		exec 3>&-
		jq -r '.OptimizeNeeded, (.AllPaths | length)' d.vhds/set.json | xargs
		head -c3 d.vhds/raw; echo
		head -c8 $IMAGES/d.vhds; stat -c ' %s' $IMAGES/d.vhds; ls $IMAGES | grep -c avhdx`)
	require.Equal(t, []string{"twoone", "one", "before 1 0", "one", "tuesday", "onetwo", "two", "true 3", "false 1", "one", "vhdsetv1 266240", "1"}, lines(out))
}

// What is wrong with a set is told: a disk that is gone, one that is another.
func TestSetsThatAreBroken(t *testing.T) {
	dir := t.TempDir()
	m := Start(t, dir)
	m.Shell(t, `echo path=d.vhds size=32M > .vhdfs/create; mkdir d.vhds/snapshots/a; echo path=o.vhdx size=32M > .vhdfs/create`)
	m.Stop(t)
	names, err := filepath.Glob(filepath.Join(dir, "d_*.avhdx"))
	require.NoError(t, err)
	require.Len(t, names, 2)
	m = Start(t, dir)
	base := strings.TrimSpace(m.Shell(t, `basename "$(jq -r .SnapshotPath d.vhds/snapshots/a/info.json)"`))
	leaf := strings.TrimSpace(m.Shell(t, `basename "$(jq -r .ActivePath d.vhds/set.json)"`))
	m.Stop(t)
	b, err := os.ReadFile(filepath.Join(dir, "o.vhdx"))
	require.NoError(t, err)
	own, err := os.ReadFile(filepath.Join(dir, base))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, base), b, 0o600))
	m = Start(t, dir)
	out, err := m.Try(t, "bash", `cat d.vhds/raw > /dev/null`)
	require.Error(t, err)
	require.Contains(t, out, "Stale file handle")
	m.Stop(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, base), own, 0o600))
	require.NoError(t, os.Rename(filepath.Join(dir, leaf), filepath.Join(dir, "gone")))
	m = Start(t, dir)
	out, err = m.Try(t, "bash", `cat d.vhds/raw > /dev/null`)
	require.Error(t, err)
	require.Contains(t, out, "Link has been severed")
	require.Equal(t, "ENOLINK\n", m.Shell(t, `jq -r .Errno d.vhds/state.json`))
}

// A file of a set that somebody exchanged while it is served is not read through the
// set: the answers name it, the id that it has and the one that was expected.
func TestSetsWithOtherFiles(t *testing.T) {
	need.Tool(t, "jq")
	m := Start(t, t.TempDir())
	out := m.Shell(t, `
		other() { mv $IMAGES/$1 $IMAGES/aside; cp $IMAGES/o.vhdx $IMAGES/$1; }
		back() { rm $IMAGES/$1; mv $IMAGES/aside $IMAGES/$1; }
		names() { case "$1" in *"$2"*"$3"*"$4"*) echo named;; *) echo "$1";; esac; }
		echo path=d.vhds size=32M > .vhdfs/create; echo path=o.vhdx size=32M > .vhdfs/create
		mkdir d.vhds/snapshots/a
		leaf=$(basename "$(jq -r .ActivePath d.vhds/set.json)"); file=$(basename "$(jq -r .SnapshotPath d.vhds/snapshots/a/info.json)")
		expected=$(jq -r .VirtualDiskId d.vhds/settings.json); found=$(jq -r .VirtualDiskId o.vhdx/settings.json)
		other $leaf
		cat d.vhds/raw 2>&1 > /dev/null | grep -o 'Stale file handle'
		jq -r .Errno d.vhds/state.json; names "$(jq -r .Error d.vhds/state.json)" $leaf ${found,,} ${expected,,}
		(mkdir d.vhds/snapshots/b) 2>&1 | grep -o 'Stale file handle'
		back $leaf; cat d.vhds/raw | wc -c
		other $file
		cat d.vhds/snapshots/a/raw 2>&1 > /dev/null | grep -o 'Stale file handle'
		names "$(jq -r .Error d.vhds/snapshots/a/info.json)" $file ${found,,} ${expected,,}
		(echo 1 > d.vhds/snapshots/a/apply) 2>&1 | grep -o 'Stale file handle'
		back $file; cat d.vhds/snapshots/a/raw | wc -c; jq -r .Error d.vhds/snapshots/a/info.json
		echo '{"VirtualDiskId":"11111111-2222-3333-4444-555555555555"}' > d.vhds/settings.json
		jq -r .VirtualDiskId d.vhds/settings.json; cat d.vhds/raw d.vhds/snapshots/a/raw | wc -c`)
	require.Equal(t, []string{"Stale file handle", "ESTALE", "named", "Stale file handle", "33554432", "Stale file handle", "named", "Stale file handle",
		"33554432", "null", "11111111-2222-3333-4444-555555555555", "67108864"}, lines(out))
}

// While a disk of a set, or a snapshot, is open, no other program takes any file of its
// chain for writing: not QEMU, and not another vhdfs, which knows the file by another
// name and nothing of the set. QEMU may read what is not written.
func TestSetsAreLocked(t *testing.T) {
	need.Tool(t, "qemu-io")
	need.Tool(t, "jq")
	m := Start(t, t.TempDir())
	other := t.TempDir()
	out := m.Shell(t, `
		echo path=d.vhds size=32M > .vhdfs/create
		for s in a b c; do mkdir d.vhds/snapshots/$s; echo $s | dd of=d.vhds/raw conv=notrunc status=none; done
		files=$(jq -r '.AllPaths[]' d.vhds/set.json); leaf=$(jq -r .ActivePath d.vhds/set.json)
		try() { if qemu-io -f raw "$@" 2>&1 | grep -q 'Failed to get .* lock'; then printf 'locked '; else printf 'free '; fi; }
		all() { echo; for f in $files; do [ $f = $leaf ] && printf '*'; try "$@" $f; done; }
		all -c length
		exec 3<d.vhds/raw; all -c length; all -r -c 'read 0 512'; exec 3<&-
		exec 3<>d.vhds/raw; all -c length
		mkdir d.vhds/snapshots/d; all -c length; exec 3<&-
		exec 3<d.vhds/snapshots/b/raw; all -c length; echo
		ln $(jq -r .SnapshotPath d.vhds/snapshots/a/info.json) `+other+`/x.vhdx
		$VHDFS set `+other+`/x.vhdx id=11111111-2222-3333-4444-555555555555 2>&1 | grep -o 'is locked by'
		exec 3<&-
		$VHDFS set `+other+`/x.vhdx id=11111111-2222-3333-4444-555555555555 > /dev/null && cat d.vhds/snapshots/a/raw 2>&1 > /dev/null | grep -o 'Stale file handle'`)
	require.Equal(t, []string{
		"*free free free free", "*locked locked locked locked", "*free free free free",
		"*locked locked locked locked", "*locked locked locked locked",
		"*free locked locked free", "is locked by", "Stale file handle"}, lines(strings.ReplaceAll(out, " \n", "\n")))
}
