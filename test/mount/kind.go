package mount

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/e2e"
	"vhdfs/test/fixture"
	"vhdfs/test/need"
)

const mib = 1 << 20

// diskSize is small, so that few writes meet every state of every block, and
// holds 32 or 64 blocks.
const diskSize = 32 * mib

// Kind is a writable kind of image.
type Kind struct {
	Name  string // of the subtest
	File  string // the image that is written
	Size  int64  // of the disk, in bytes
	QEMU  string // what QEMU calls the format; "" where it cannot read the image
	build func(dir string, base []fixture.Write) error
}

// Make makes the image, and its parent if it has one, in dir. base is what the
// disk shows: a differencing disk inherits it.
func (k Kind) Make(t testing.TB, dir string, base []fixture.Write) {
	t.Helper()
	require.NoError(t, k.build(dir, base))
}

// Raw is the kind's disk in a mount.
func (k Kind) Raw(m *e2e.Mount) string { return m.Path(k.File, "raw") }

// Disks are the six kinds of hard disk, in small blocks.
var Disks = []Kind{
	{Name: "vhd fixed", File: "fixed.vhd", Size: diskSize, QEMU: "vpc", build: func(dir string, base []fixture.Write) error {
		return fixture.VHD{Size: diskSize, Type: 2, Writes: base}.WriteFile(filepath.Join(dir, "fixed.vhd"))
	}},
	{Name: "vhd dynamic", File: "dynamic.vhd", Size: diskSize, QEMU: "vpc", build: func(dir string, base []fixture.Write) error {
		return fixture.VHD{Size: diskSize, BlockSize: 512 << 10, Writes: base}.WriteFile(filepath.Join(dir, "dynamic.vhd"))
	}},
	{Name: "vhd differencing", File: "child.vhd", Size: diskSize, build: vhdChild},
	{Name: "vhdx fixed", File: "fixed.vhdx", Size: diskSize, QEMU: "vhdx", build: func(dir string, base []fixture.Write) error {
		return fixture.VHDX{Size: diskSize, BlockSize: mib, Fixed: true, Writes: base}.WriteFile(filepath.Join(dir, "fixed.vhdx"))
	}},
	{Name: "vhdx dynamic", File: "dynamic.vhdx", Size: diskSize, QEMU: "vhdx", build: func(dir string, base []fixture.Write) error {
		return fixture.VHDX{Size: diskSize, BlockSize: mib, Writes: base}.WriteFile(filepath.Join(dir, "dynamic.vhdx"))
	}},
	{Name: "vhdx differencing", File: "child.vhdx", Size: diskSize, build: vhdxChild},
}

// Floppy is the one kind that has no blocks and no metadata.
var Floppy = Kind{Name: "vfd", File: "floppy.vfd", Size: 1474560, build: func(dir string, base []fixture.Write) error {
	b := make([]byte, 1474560)
	for _, w := range base {
		if w.Off < int64(len(b)) {
			copy(b[w.Off:], w.Data)
		}
	}
	return os.WriteFile(filepath.Join(dir, "floppy.vfd"), b, 0o644)
}}

// Kinds are all of them.
var Kinds = append([]Kind{Floppy}, Disks...)

func vhdChild(dir string, base []fixture.Write) error {
	parent := fixture.VHD{Size: diskSize, Writes: base, UUID: [16]byte{0xba, 15: 2}, Timestamp: 1}
	if err := parent.WriteFile(filepath.Join(dir, "base.vhd")); err != nil {
		return err
	}
	return fixture.VHD{
		Size: diskSize, BlockSize: 512 << 10, Type: 4,
		Parent: &fixture.VHDParent{UUID: parent.UUID, Timestamp: 1, Name: "base.vhd",
			Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\base.vhd`}}},
	}.WriteFile(filepath.Join(dir, "child.vhd"))
}

func vhdxChild(dir string, base []fixture.Write) error {
	parent := fixture.VHDX{Size: diskSize, Writes: base, DataWriteGUID: [16]byte{0xba, 15: 1}}
	if err := parent.WriteFile(filepath.Join(dir, "base.vhdx")); err != nil {
		return err
	}
	return fixture.VHDX{Size: diskSize, BlockSize: mib, Parent: &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", "{ba000000-0000-0000-0000-000000000001}"}, {"relative_path", `.\base.vhdx`}, {"absolute_win32_path", `C:\disks\base.vhdx`}}},
	}.WriteFile(filepath.Join(dir, "child.vhdx"))
}

// Parent is the file that must never change, "" where there is none.
func (k Kind) Parent() string {
	switch k.File {
	case "child.vhd":
		return "base.vhd"
	case "child.vhdx":
		return "base.vhdx"
	}
	return ""
}

// mended are the warnings that a crash may leave: the first write puts the
// footer of a VHD and the older header of a VHDX right.
var mended = []string{"vhd.footer.end", "vhd.footer.copy", "vhd.footer.differ", "vhdx.header.invalid"}

// Check asks the program for every anomaly of an image that is not open: after
// any crash there may be notes of space that is lost until a compact, and in a
// VHD a footer that the next write mends, but no error.
func Check(t testing.TB, image string) {
	t.Helper()
	// The exit code tells of warnings; what counts stands in the report.
	out, _ := e2e.Command(t, filepath.Dir(image), "check", "--json", image)
	var report struct {
		ReturnValue *uint32
		Error       string
		Images      []struct {
			Path      string
			Errors    int
			Anomalies []struct{ Name, Severity, Where, Text string }
		}
	}
	require.NoError(t, json.NewDecoder(strings.NewReader(out)).Decode(&report), out)
	require.NotEmpty(t, report.Images, out)
	for _, im := range report.Images {
		require.Zero(t, im.Errors, out)
		for _, a := range im.Anomalies {
			if a.Severity != "note" {
				require.Contains(t, mended, a.Name, out)
			}
		}
	}
}

// JudgeQEMU lets QEMU, where it can read the image, judge what a crash left: it
// replays the log on a copy of the file, finds no damage, and shows what we show.
func (k Kind) JudgeQEMU(t testing.TB, dir string, j *Journal) {
	t.Helper()
	if k.QEMU == "" {
		return
	}
	tmp := t.TempDir()
	image, raw := filepath.Join(tmp, k.File), filepath.Join(tmp, "raw")
	Tool(t, "cp", "--sparse=always", filepath.Join(dir, k.File), image)
	CheckQEMU(t, k.QEMU, image, "-r", "all")
	Tool(t, "qemu-img", "convert", "-f", k.QEMU, "-O", "raw", image, raw)
	require.NoError(t, os.Truncate(raw, k.Size)) // a VHD's size by its geometry may be larger
	require.NoError(t, j.Judge(raw), "as QEMU reads it")
	require.NoError(t, os.RemoveAll(tmp))
}

// Judge7Zip lets 7-Zip judge an image that was closed. It reads differencing
// disks with their parents, and a log it does not replay.
func (k Kind) Judge7Zip(t testing.TB, dir string, j *Journal) {
	t.Helper()
	ext := strings.TrimPrefix(filepath.Ext(k.File), ".")
	if ext == "vfd" {
		return
	}
	raw := filepath.Join(t.TempDir(), "raw")
	out, err := os.Create(raw)
	require.NoError(t, err)
	cmd := exec.Command(need.Tool(t, "7z"), "e", "-so", "-t"+ext, filepath.Join(dir, k.File))
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = out, &said
	require.NoError(t, cmd.Run(), "%s", &said)
	require.NoError(t, out.Close())
	require.NoError(t, j.Judge(raw), "as 7-Zip reads it")
	require.NoError(t, os.Remove(raw))
}

// CheckQEMU asks QEMU whether an image is sound. Space that belongs to no block
// is no damage, and of a VHD it can only say that it opens.
func CheckQEMU(t testing.TB, format, image string, flags ...string) {
	t.Helper()
	const leaked, unsupported = 3, 63
	args := append(append([]string{"check", "-f", format}, flags...), image)
	out, err := exec.Command(need.Tool(t, "qemu-img"), args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		require.Contains(t, []int{leaked, unsupported}, exit.ExitCode(), "%s", out)
		return
	}
	require.NoError(t, err, "%s", out)
}
