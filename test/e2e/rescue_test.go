package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/fixture"
	"vhdfs/test/need"
)

// The disasters for which people look for help, each played from the broken chain,
// by what chain.json and graph.json say of it, to the data that are back. The
// scripts are what one would type.

const rescueSize = 16 * mib

// dailies writes base and the disks of n days after it, as backup software leaves
// them, with paths of a Windows machine that is gone. It answers the content after
// each day, that of the base first.
func dailies(t *testing.T, dir, ext string, n int) [][]byte {
	t.Helper()
	r := rand.NewChaCha8([32]byte{7})
	content := make([]byte, rescueSize)
	var all [][]byte
	for day := range n + 1 {
		var writes []fixture.Write
		for i := range 4 { // the same places again and again, and one of its own
			off := int64(i)*3*mib + 8192
			if i == 3 {
				off = int64(day%10)*mib + 4096*int64(day)
			}
			w := fixture.Write{Off: off, Data: make([]byte, 3*512)}
			_, _ = r.Read(w.Data) // never fails
			copy(w.Data, fmt.Sprintf("RESCUED day %d", day))
			writes = append(writes, w)
			copy(content[off:], w.Data)
		}
		writeDaily(t, dir, ext, day, writes)
		all = append(all, bytes.Clone(content))
	}
	return all
}

func dailyID(day int) [16]byte { return [16]byte{0xda, byte(day + 1), 15: 1} }

func dailyName(ext string, day int) string {
	if day == 0 {
		return "base." + ext
	}
	return fmt.Sprintf("day%02d.a%s", day, ext)
}

func writeDaily(t *testing.T, dir, ext string, day int, writes []fixture.Write) {
	t.Helper()
	name, disk := dailyName(ext, day), [16]byte{0xd1, 15: 2}
	windows := `C:\ClusterStorage\Volume1\` + dailyName(ext, max(day-1, 0))
	var err error
	switch {
	case ext == "vhd" && day == 0:
		err = fixture.VHD{Size: rescueSize, UUID: dailyID(0), Writes: writes}.WriteFile(filepath.Join(dir, name))
	case ext == "vhd":
		err = fixture.VHD{Size: rescueSize, Type: 4, UUID: dailyID(day), Writes: writes, Parent: &fixture.VHDParent{UUID: dailyID(day - 1), Name: dailyName(ext, day-1),
			Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\` + dailyName(ext, day-1)}, {Code: "W2ku", Path: windows}}}}.WriteFile(filepath.Join(dir, name))
	default:
		v := fixture.VHDX{Size: rescueSize, BlockSize: mib, DiskID: disk, DataWriteGUID: dailyID(day), Writes: writes}
		if day > 0 {
			v.Parent = &fixture.Locator{Entries: [][2]string{{"parent_linkage", "{" + idText(dailyID(day-1)) + "}"},
				{"relative_path", `.\` + dailyName(ext, day-1)}, {"absolute_win32_path", `\\?\` + windows}}}
		}
		err = v.WriteFile(filepath.Join(dir, name))
	}
	require.NoError(t, err)
}

func idText(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// eachFormat runs a scenario with VHD and VHDX in a new folder.
func eachFormat(t *testing.T, f func(t *testing.T, ext, dir string)) {
	need.Tool(t, "jq")
	for _, ext := range []string{"vhd", "vhdx"} {
		t.Run(ext, func(t *testing.T) { f(t, ext, t.TempDir()) })
	}
}

// lines are what a script wrote.
func lines(out string) []string { return strings.Split(strings.TrimSpace(out), "\n") }

// The parent was opened for writing once, on another machine: the ids do not match
// any more, and nothing opens the child (0xC03A000E).
func TestRescueParentWrittenOnce(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	content := dailies(t, dir, "vhdx", 2)
	away := filepath.Join(t.TempDir(), "away")
	require.NoError(t, os.Mkdir(away, 0o700))
	for _, name := range []string{"day01.avhdx", "day02.avhdx"} {
		require.NoError(t, os.Rename(filepath.Join(dir, name), filepath.Join(away, name)))
	}
	m := Start(t, dir)
	m.Shell(t, `dd if=base.vhdx/raw of=base.vhdx/raw bs=512 count=1 conv=notrunc,fsync status=none; mv `+away+`/* $IMAGES/`)
	out, err := m.Try(t, "bash", `sha256sum < day02.avhdx/raw`)
	require.Error(t, err)
	require.Contains(t, out, "Stale file handle")

	// chain.json says which link broke, why, and what may be the parent.
	out = m.Shell(t, `
		jq -r '.Errno' day02.avhdx/chain.json
		jq -r '.Images[1].Parent | .Errno, .StatusCode, .Likely[0].Path, (.Likely[0].Why | join(", "))' day02.avhdx/chain.json
		jq -r '.MismatchedParents[], (.Orphans | length)' .vhdfs/graph.json`)
	require.Equal(t, []string{"ESTALE", "ESTALE", "3225026574", filepath.Join(dir, "base.vhdx"), "the same VirtualDiskId, a recorded name, the same size",
		filepath.Join(dir, "day01.avhdx"), "2"}, lines(out))

	// It is not taken unasked; the refusal holds the evidence.
	out = m.Shell(t, `exec 3<>day01.avhdx/set-parent; echo base.vhdx >&3 2>/dev/null && exit 9
		cat <&3 | jq -r '.Errno, .Evidence.ChildVirtualDiskId == .Evidence.ParentVirtualDiskId, .Evidence.WithChild.Places > 0, .Evidence.WithChild.Same + .Evidence.WithChild.Alike > 0'`)
	require.Equal(t, []string{"ESTALE", "true", "true", "true"}, lines(out))

	out = m.Shell(t, `echo parent=base.vhdx ignoreidmismatch=true > day01.avhdx/set-parent
		sha256sum < day02.avhdx/raw
		jq -r .Whole day02.avhdx/chain.json
		echo 1 > day02.avhdx/validate`)
	require.Equal(t, []string{sum(content[2]) + "  -", "true"}, lines(out))

	// It can be taken back, and done again.
	out = m.Shell(t, `echo undo=true > day01.avhdx/set-parent
		jq -r .Errno day02.avhdx/chain.json
		jq -r .UndoRecord day01.avhdx/state.json
		$VHDFS set-parent day01.avhdx parent=base.vhdx ignoreidmismatch=true > /dev/null
		sha256sum < day02.avhdx/raw`)
	require.Equal(t, []string{"ESTALE", filepath.Join(dir, ".vhdfs-state", "day01.avhdx.undo"), sum(content[2]) + "  -"}, lines(out))
}

// The parent was moved, renamed and re-lettered. It is found by its id; set-parent
// records where it is, so that the chain holds when it is copied elsewhere.
func TestRescueParentMoved(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		content := dailies(t, dir, ext, 1)
		m := Start(t, dir)
		child := dailyName(ext, 1)
		out := m.Shell(t, `mkdir "$IMAGES/New store"; mv $IMAGES/base.`+ext+` "$IMAGES/New store/Server disk.`+ext+`"
			sha256sum < `+child+`/raw
			jq -r '.Images[0].Parent.FoundBy' `+child+`/chain.json
			echo 'parent="New store/Server disk.`+ext+`"' > `+child+`/set-parent
			jq -r '.Images[0].Parent | .FoundBy, .StoredPaths[0].Path' `+child+`/chain.json
			sha256sum < `+child+`/raw`)
		require.Equal(t, []string{sum(content[1]) + "  -", "id", "relative path", `.\New store\Server disk.` + ext, sum(content[1]) + "  -"}, lines(out))
		m.Stop(t)
		copied := t.TempDir()
		_, err := run(t, dir, nil, "cp", "-r", ".", copied)
		require.NoError(t, err)
		m = Start(t, copied)
		out = m.Shell(t, `sha256sum < `+child+`/raw; jq -r '.Images[0].Parent.FoundBy' `+child+`/chain.json; echo profile=windows > `+child+`/check 2> /dev/null || true
			jq -r '[.Images[].Anomalies[].Name] | index("profile.windows.parent")' `+child+`/check`)
		require.Equal(t, []string{sum(content[1]) + "  -", "relative path", "null"}, lines(out))
	})
}

// The child's record of its parent is garbage: the disk says so, shows nothing, and
// set-parent writes the record anew.
func TestRescueUnreadableLink(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	content := dailies(t, dir, "vhdx", 1)
	f, err := os.OpenFile(filepath.Join(dir, "day01.avhdx"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte("garbage."), 64), 2*mib+fixture.VHDXItemLocator)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	before := SHA256(t, filepath.Join(dir, "day01.avhdx"))
	m := Start(t, dir)
	out, err := m.Try(t, "bash", `head -c 512 day01.avhdx/raw`)
	require.Error(t, err)
	require.Contains(t, out, "Structure needs cleaning")
	out = m.Shell(t, `jq -r '.Images[0].Parent | .Errno, .Likely[0].Path, .Likely[0].Why[0]' day01.avhdx/chain.json
		jq -r '.UnreadableLinks[0]' .vhdfs/graph.json
		jq -r '.Anomalies[].Name' day01.avhdx/state.json
		exec 3<>day01.avhdx/check; echo 1 >&3 2>/dev/null && exit 9; cat <&3 | jq -r '.Errno, .Images[0].Anomalies[].Name'
		exec 4<>day01.avhdx/set-parent; echo base.vhdx >&4 2>/dev/null && exit 9; cat <&4 | jq -r '.Errno, .Evidence.WithChild.Places > 0'`)
	require.Equal(t, []string{"EUCLEAN", filepath.Join(dir, "base.vhdx"), "the same VirtualDiskId", filepath.Join(dir, "day01.avhdx"),
		"vhdx.locator.unreadable", "EUCLEAN", "vhdx.locator.unreadable", "ESTALE", "true"}, lines(out))
	require.Equal(t, before, SHA256(t, filepath.Join(dir, "day01.avhdx")))
	out = m.Shell(t, `echo base.vhdx ignoreidmismatch=true > day01.avhdx/set-parent
		sha256sum < day01.avhdx/raw
		jq -r '.Unread' $(jq -r .UndoRecord day01.avhdx/state.json) | base64 -d | head -c 8; echo
		echo 1 > day01.avhdx/check`)
	require.Equal(t, []string{sum(content[1]) + "  -", "garbage."}, lines(out))
}

// A machine was copied with its disks: two files have the right id. None is taken;
// set-parent says which it is.
func TestRescueTwoCopiesOfTheParent(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		content := dailies(t, dir, ext, 1)
		m := Start(t, dir)
		child, base := dailyName(ext, 1), "base."+ext
		out, err := m.Try(t, "bash", `mkdir $IMAGES/a $IMAGES/b; cp $IMAGES/`+base+` $IMAGES/a/one.`+ext+`; mv $IMAGES/`+base+` $IMAGES/b/two.`+ext+`; cat `+child+`/raw > /dev/null`)
		require.Error(t, err)
		require.Contains(t, out, "Link has been severed")
		out = m.Shell(t, `jq -r '.Images[0].Parent | .Errno, .PassedOver[].Why' `+child+`/chain.json
			jq -r '.DuplicateIDs[0] | length' .vhdfs/graph.json
			echo parent=b/two.`+ext+` > `+child+`/set-parent
			sha256sum < `+child+`/raw`)
		require.Equal(t, []string{"ENOLINK", "not the only one with this id", "not the only one with this id", "2", sum(content[1]) + "  -"}, lines(out))
	})
}

// «I only have the avhdx»: what is wanted is named, the parent turns up in a
// backup, and the child is told where that is.
func TestRescueOnlyTheChild(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		content := dailies(t, dir, ext, 1)
		backup := filepath.Join(t.TempDir(), "backup")
		require.NoError(t, os.Mkdir(backup, 0o700))
		require.NoError(t, os.Rename(filepath.Join(dir, "base."+ext), filepath.Join(backup, "restored."+ext)))
		child := dailyName(ext, 1)
		m := Start(t, dir)
		out, err := m.Try(t, "bash", `head -c 512 `+child+`/raw`)
		require.Error(t, err)
		require.Contains(t, out, "Link has been severed")
		require.NotContains(t, out, "day 1", "nothing is shown in place of what is missing")
		out = m.Shell(t, `jq -r '.Images[0].Parent | .StoredIdentifiers[0], .StoredPaths[-1].Path, .Errno' `+child+`/chain.json
			jq -r '.Images[0].Wanted.Identifiers[0], .MissingParents[0]' .vhdfs/graph.json
			jq -r .MaxInternalSize `+child+`/settings.json
			exec 3<>`+child+`/validate; echo 1 >&3 2>/dev/null && exit 9; cat <&3 | jq -r '.Errno, .Child'`)
		id := strings.ToUpper(idText(dailyID(0)))
		want := lines(out)
		require.Contains(t, want[1], "base."+ext)
		want[1] = "path"
		require.Equal(t, []string{id, "path", "ENOLINK", id, filepath.Join(dir, child), fmt.Sprint(rescueSize), "ENOLINK", filepath.Join(dir, child)}, want)
		m.Stop(t)

		out, err = Command(t, dir, "chain", child, "--search", backup)
		require.NoError(t, err, out)
		require.Contains(t, out, "restored."+ext)
		m = Start(t, dir, "--search", backup)
		out = m.Shell(t, `sha256sum < `+child+`/raw
			echo parent=`+backup+`/restored.`+ext+` > `+child+`/set-parent
			jq -r '.Images[0].Parent.FoundBy' `+child+`/chain.json`)
		require.Equal(t, []string{sum(content[1]) + "  -", "relative path"}, lines(out))
		m.Stop(t)
		out, err = Command(t, dir, "convert", child, "path=whole.raw", "--allow-parent", backup)
		require.NoError(t, err, out)
		require.Equal(t, sum(content[1]), SHA256(t, filepath.Join(dir, "whole.raw")))
	})
}

// A machine with checkpoints was exported: the disk of its newest state is a plain
// file, for whatever takes one, without a merge.
func TestRescueExportedMachine(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		need.Tool(t, "qemu-img")
		content := dailies(t, dir, ext, 3)
		m := Start(t, dir)
		leaf, tmp := dailyName(ext, 3), t.TempDir()
		out := m.Shell(t, `cp --sparse=auto `+leaf+`/raw `+tmp+`/cp.img
			dd if=`+leaf+`/raw of=`+tmp+`/dd.img bs=1M status=none
			qemu-img convert -f raw -O qcow2 `+leaf+`/raw `+tmp+`/q.qcow2
			qemu-img convert -O raw `+tmp+`/q.qcow2 `+tmp+`/q.img
			echo path=flat.`+ext+` type=dynamic > `+leaf+`/convert
			sha256sum < `+tmp+`/cp.img; sha256sum < `+tmp+`/dd.img; sha256sum < `+tmp+`/q.img; sha256sum < flat.`+ext+`/raw
			jq -r '.Type' flat.`+ext+`/settings.json; echo 1 > flat.`+ext+`/check`)
		all := sum(content[3]) + "  -"
		require.Equal(t, []string{all, all, all, all, "3"}, lines(out))
	})
}

// The disk as of a checkpoint, without going back to it; and which checkpoint
// changed what.
func TestRescueLookAtCheckpoints(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		content := dailies(t, dir, ext, 3)
		m := Start(t, dir)
		for day := range 4 {
			out := m.Shell(t, `sha256sum < `+dailyName(ext, day)+`/raw`)
			require.Equal(t, sum(content[day])+"  -", strings.TrimSpace(out), "day %d", day)
		}
		_, err := m.Try(t, "bash", `echo x | dd of=`+dailyName(ext, 1)+`/raw conv=notrunc status=none`)
		require.Error(t, err, "later days are made from it")
		// Every byte that a day wrote is that day's, unless a later one wrote it again.
		out := m.Shell(t, `jq -r '.Runs[] | select(.Kind == "data") | "\(.Offset) \(.Length) \(.File)"' `+dailyName(ext, 3)+`/map.json`)
		own := map[string]int64{}
		for _, line := range lines(out) {
			var off, n int64
			var file string
			_, err := fmt.Sscan(line, &off, &n, &file)
			require.NoError(t, err)
			own[filepath.Base(file)] += n
		}
		require.Equal(t, int64(4*3*512), own[dailyName(ext, 3)], "%v", own)
		require.Len(t, own, 4, "each day has kept something")
	})
}
