package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/fixture"
)

// command runs the program in this process.
func command(t *testing.T, args ...string) (exit int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	exit = run(context.Background(), append([]string{"vhdfs"}, args...), &out, &errs)
	return exit, out.String(), errs.String()
}

var parentID = [16]byte{0xaa, 15: 1}

// folder is a chain of two, a dynamic VHD and a file that is no image.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, fixture.VHDX{Size: 64 << 20, DataWriteGUID: parentID,
		Writes: []fixture.Write{{Off: 0, Data: bytes.Repeat([]byte("base"), 1024)}}}.WriteFile(filepath.Join(dir, "base.vhdx")))
	require.NoError(t, fixture.VHDX{Size: 64 << 20,
		Parent: &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", "{aa000000-0000-0000-0000-000000000001}"}, {"relative_path", `.\base.vhdx`}}},
		Writes: []fixture.Write{{Off: 4096, Data: bytes.Repeat([]byte("kid!"), 128)}}}.WriteFile(filepath.Join(dir, "child.avhdx")))
	require.NoError(t, fixture.VHD{Size: 8 << 20}.WriteFile(filepath.Join(dir, "old.vhd")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bad.vhdx"), bytes.Repeat([]byte("no image "), 5000), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	return dir
}

func TestInfo(t *testing.T) {
	dir := folder(t)
	exit, out, stderr := command(t, "info", filepath.Join(dir, "child.avhdx"))
	require.Zero(t, exit, stderr)
	for _, line := range []string{
		"Format        VHDX", "Type          differencing", "Virtual size  67108864 (64 MiB)", "Block size    2097152 (2 MiB)",
		"Sectors       512 logical, 4096 physical", "Parent        " + dir + "/base.vhdx", "Parent id     aa000000-0000-0000-0000-000000000001",
	} {
		require.Contains(t, out, line+"\n")
	}
}

func TestInfoAsJSON(t *testing.T) {
	dir := folder(t)
	for _, args := range [][]string{{"info", "--json", filepath.Join(dir, "base.vhdx")}, {"info", filepath.Join(dir, "base.vhdx"), "--json"}} {
		exit, out, stderr := command(t, args...)
		require.Zero(t, exit, stderr)
		var doc struct{ SettingData, State map[string]any }
		require.NoError(t, json.Unmarshal([]byte(out), &doc))
		require.Equal(t, 3.0, doc.SettingData["Format"])
		require.Equal(t, 3.0, doc.SettingData["Type"])
		require.Equal(t, []any{dir + "/child.avhdx"}, doc.State["Children"])
	}
}

// Text for people shows what it can; the exit code says what kind of trouble.
func TestInfoOfBrokenImages(t *testing.T) {
	dir := folder(t)
	exit, out, _ := command(t, "info", filepath.Join(dir, "bad.vhdx"))
	require.Equal(t, 4, exit)
	require.Contains(t, out, "Error ")
	require.Contains(t, out, "image is corrupt")

	require.NoError(t, os.Rename(filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "gone")))
	exit, out, _ = command(t, "info", filepath.Join(dir, "child.avhdx"))
	require.Equal(t, 5, exit)
	require.Contains(t, out, `Parent        .\base.vhdx`)
	require.Contains(t, out, "parent not found")
	exit, out, _ = command(t, "chain", filepath.Join(dir, "child.avhdx"))
	require.Equal(t, 5, exit)
	require.Contains(t, out, "parent not found")
}

func TestChain(t *testing.T) {
	dir := folder(t)
	exit, out, stderr := command(t, "chain", filepath.Join(dir, "child.avhdx"))
	require.Zero(t, exit, stderr)
	require.Equal(t, "TYPE               SIZE      FOUND BY       PATH\n"+
		"vhdx differencing  67108864                 "+dir+"/child.avhdx\n"+
		"vhdx dynamic       67108864  relative path  "+dir+"/base.vhdx\n", out)
}

func TestMap(t *testing.T) {
	dir := folder(t)
	exit, out, stderr := command(t, "map", filepath.Join(dir, "child.avhdx"))
	require.Zero(t, exit, stderr)
	lines := strings.Split(out, "\n")
	require.Regexp(t, `^ +OFFSET +LENGTH  KIND +AT  FILE$`, lines[0])
	require.Regexp(t, `^ +0 +4096  data +\d+  .*/base.vhdx$`, lines[1])
	require.Regexp(t, `^ +4096 +512  data +\d+  .*/child.avhdx$`, lines[2])
}

func TestPartitionsOfADiskWithoutATable(t *testing.T) {
	dir := folder(t)
	exit, out, stderr := command(t, "partitions", filepath.Join(dir, "old.vhd"))
	require.Zero(t, exit, stderr)
	require.Contains(t, out, "table none")
}

func TestLs(t *testing.T) {
	dir := folder(t)
	exit, out, stderr := command(t, "ls", dir)
	require.Zero(t, exit, stderr)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 6)
	require.Regexp(t, `^NAME +FORMAT +TYPE +SIZE +PARENT$`, lines[0])
	require.Regexp(t, `^bad.vhdx .*image is corrupt`, lines[1])
	require.Regexp(t, `^base.vhdx +vhdx +dynamic +67108864 *$`, lines[2])
	require.Regexp(t, `^child.avhdx +vhdx +differencing +67108864 +\.\\base.vhdx$`, lines[3])
	require.Regexp(t, `^old.vhd +vhd +dynamic +8388608 *$`, lines[4])
	require.Regexp(t, `^sub/ +folder`, lines[5])
}

func TestOperations(t *testing.T) {
	dir := folder(t)
	exit, out, _ := command(t, "validate", filepath.Join(dir, "child.avhdx"))
	require.Zero(t, exit)
	require.Equal(t, "validate: OK\n", out)

	exit, out, _ = command(t, "check", filepath.Join(dir, "child.avhdx"))
	require.Zero(t, exit)
	require.Contains(t, out, "child.avhdx: 0 errors, 0 warnings")
	require.Contains(t, out, "base.vhdx: 0 errors, 0 warnings")

	exit, out, _ = command(t, "check", filepath.Join(dir, "bad.vhdx"))
	require.Equal(t, 4, exit)
	require.Contains(t, out, "image.open")

	require.NoError(t, os.Remove(filepath.Join(dir, "base.vhdx")))
	exit, out, stderr := command(t, "validate", "--json", filepath.Join(dir, "child.avhdx"))
	require.Equal(t, 5, exit)
	require.Contains(t, stderr, "parent not found")
	var answer map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &answer))
	require.Equal(t, "ValidateVirtualHardDisk", answer["Operation"])
	require.Equal(t, 32779.0, answer["ReturnValue"])
	require.Equal(t, dir+"/child.avhdx", answer["Child"])
	require.Equal(t, `.\base.vhdx`, answer["Parent"])
	require.Equal(t, "ENOLINK", answer["Errno"])
}

func TestWrongCommandLines(t *testing.T) {
	dir := folder(t)
	image := filepath.Join(dir, "old.vhd")
	for _, tt := range []struct {
		args []string
		exit int
		text string
	}{
		{[]string{"nonsense"}, 2, `no command "nonsense"`},
		{[]string{"info"}, 2, "IMAGE is missing: vhdfs info IMAGE"},
		{[]string{"info", image, "more"}, 2, `argument "more" is too much`},
		{[]string{"info", "--nonsense", image}, 2, "nonsense"},
		{[]string{"info", filepath.Join(dir, "none.vhd")}, 3, "none.vhd"},
		{[]string{"info", dir}, 2, "is a folder"},
		{[]string{"ls", image}, 2, "is a file"},
		{[]string{"check"}, 2, "IMAGE is missing"},
		{[]string{"check", image, "profile=mars"}, 2, `profile="mars": bad argument`},
		{[]string{"mount", dir}, 2, "MNT is missing"},
		{[]string{"mount", "--cache=fast", dir, dir}, 2, `cache="fast"`},
		{[]string{"mount", "--cache-size=+1G", dir, dir}, 2, "cache-size"},
		{[]string{"mount", "--truncate=maybe", dir, dir}, 2, "want refuse or discard"},
		{[]string{"mount", "--log-level=loud", dir, dir}, 2, "log-level"},
		{[]string{"mount", "--log-format=xml", dir, dir}, 2, "log-format"},
		{[]string{"mount", filepath.Join(dir, "none"), dir}, 3, "none"},
		{[]string{"umount", dir}, 2, "is not the mount point of a vhdfs mount"},
		{[]string{"completion", "csh"}, 2, "no completion"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			exit, _, stderr := command(t, tt.args...)
			require.Equal(t, tt.exit, exit)
			require.Contains(t, stderr, tt.text)
		})
	}
}

// A path that the user typed is taken as it stands, links and .. included.
func TestTypedPathsAreTakenAsTheyStand(t *testing.T) {
	dir := folder(t)
	link := filepath.Join(t.TempDir(), "link.avhdx")
	require.NoError(t, os.Symlink(filepath.Join(dir, "child.avhdx"), link))
	exit, _, stderr := command(t, "validate", link)
	require.Zero(t, exit, stderr)
	exit, _, stderr = command(t, "validate", filepath.Join(dir, "sub")+"/../child.avhdx")
	require.Zero(t, exit, stderr)
}

func TestPathsThatStartLikeFlags(t *testing.T) {
	dir := folder(t)
	t.Chdir(dir)
	require.NoError(t, os.Rename("old.vhd", "-old.vhd"))
	exit, _, stderr := command(t, "validate", "--", "-old.vhd")
	require.Zero(t, exit, stderr)
}

func TestSearchFindsAParentElsewhere(t *testing.T) {
	dir, other := folder(t), t.TempDir()
	require.NoError(t, os.Rename(filepath.Join(dir, "base.vhdx"), filepath.Join(other, "renamed.vhdx")))
	exit, _, _ := command(t, "validate", filepath.Join(dir, "child.avhdx"))
	require.Equal(t, 5, exit)
	exit, _, stderr := command(t, "validate", filepath.Join(dir, "child.avhdx"), "--search", other)
	require.Zero(t, exit, stderr)
}

func TestTextFromImagesDoesNotSteerTheTerminal(t *testing.T) {
	require.Equal(t, `"a\x1b[2J\nb"`, printable("a\x1b[2J\nb"))
	require.Equal(t, "Größe 1", printable("Größe 1"))
}

func TestSizesForPeople(t *testing.T) {
	for _, tt := range []struct {
		in   int64
		want string
	}{{0, "0"}, {1023, "1023"}, {1024, "1024 (1 KiB)"}, {1536, "1536 (1.5 KiB)"}, {64 << 40, "70368744177664 (64 TiB)"}, {1 << 60, "1152921504606846976 (1048576 TiB)"}} {
		require.Equal(t, tt.want, size(tt.in))
	}
}

func TestVersionAndCompletion(t *testing.T) {
	_, out, _ := command(t, "version")
	require.Regexp(t, `^vhdfs \d+\.\d+\.\d+ go`, out)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		exit, out, _ := command(t, "completion", shell)
		require.Zero(t, exit)
		require.Contains(t, out, "vhdfs")
	}
}
