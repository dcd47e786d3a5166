package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/need"
)

func TestCreateThroughTheMount(t *testing.T) {
	dir := t.TempDir()
	content := chainOfTwo(t, dir)
	m := Start(t, dir)
	out := m.Shell(t, `
		test ! -e new.vhdx
		echo path=new.vhdx size=1G format=vhdx type=dynamic > .vhdfs/create
		stat -c %s new.vhdx/raw
		stat -c %a $IMAGES/new.vhdx
		printf hello | dd of=new.vhdx/raw conv=notrunc,fsync status=none
		echo path=leaf.avhdx parent=child.avhdx > .vhdfs/create
		sha256sum < leaf.avhdx/raw
		echo f.vfd > .vhdfs/create-floppy
		stat -c %s f.vfd/raw
		echo path=copy.vhd type=fixed > leaf.avhdx/convert
		sha256sum < copy.vhd/raw
		jq -r .Path leaf.avhdx/convert
		jq -r .Usage .vhdfs/help/create | head -c 7`)
	digest := sum(content) + "  -"
	require.Equal(t, strings.Join([]string{"1073741824", "600", digest, "1474560", digest,
		filepath.Join(dir, "copy.vhd"), "create:"}, "\n"), strings.TrimSpace(out))
	out, err := m.Try(t, "bash", `echo path=new.vhdx size=1G > .vhdfs/create`)
	require.Error(t, err)
	require.Contains(t, out, "File exists")
	out = m.Shell(t, `jq -r .Errno,.ReturnValue .vhdfs/create; test ! -e base.vhdx/create`)
	require.Equal(t, "EEXIST\n32773", strings.TrimSpace(out))
	left, err := os.ReadDir(filepath.Join(dir, ".vhdfs-state"))
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "log", left[0].Name())
	require.Equal(t, "5", strings.TrimSpace(m.Shell(t, `wc -l < .vhdfs/log`)))
	m.Stop(t)
}

func TestCreateAndConvertOnTheCommandLine(t *testing.T) {
	qemu := need.Tool(t, "qemu-img")
	dir := t.TempDir()
	chainOfTwo(t, dir)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	require.NoError(t, os.Mkdir(elsewhere, 0o700))
	for _, args := range [][]string{
		{"create", "new.vhdx", "size=40G"},
		{"create", "path=other.vhd", "type=fixed", "size=10M"},
		{"create", elsewhere + "/leaf.avhdx", "parent=child.avhdx"},
		{"create-floppy", "f.vfd", "size=720K"},
		{"convert", "child.avhdx", "path=plain.raw"},
		{"convert", elsewhere + "/leaf.avhdx", "--allow-parent", dir, "path=leaf.vhdx"},
		{"convert", "child.avhdx", "path=" + elsewhere + "/d.vhd"},
		{"convert", "child.avhdx", "path=f.vhd", "type=fixed"},
		{"convert", "child.avhdx", "path=f.vhdx", "type=fixed", "block=0"},
		{"create", "source.vhdx", "source=plain.raw"},
	} {
		out, err := Command(t, dir, args...)
		require.NoError(t, err, "%v: %s", args, out)
	}
	for name, format := range map[string]string{"leaf.vhdx": "vhdx", elsewhere + "/d.vhd": "vpc", "f.vhd": "vpc", "f.vhdx": "vhdx", "source.vhdx": "vhdx"} {
		out, err := run(t, dir, nil, qemu, "compare", "-f", "raw", "-F", format, "plain.raw", name)
		require.NoError(t, err, "%s: %s", name, out)
		if format == "vhdx" {
			out, err = run(t, dir, nil, qemu, "check", "-f", format, name)
			require.NoError(t, err, "%s: %s", name, out)
		}
	}
	for _, tt := range []struct {
		args []string
		exit int
		text string
	}{
		{[]string{"create"}, 2, "NEW is missing"},
		{[]string{"create", "new.vhdx", "size=1G"}, 2, "nothing is ever overwritten"},
		{[]string{"create", "none/n.vhdx", "size=1G"}, 3, "none"},
		{[]string{"create", "n.vhdx", "parent=none.vhdx"}, 3, "none.vhdx"},
		{[]string{"convert", "child.avhdx", "path=n.iso"}, 8, "makes no iso images"},
	} {
		out, err := Command(t, dir, tt.args...)
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit), "%v: %s", tt.args, out)
		require.Equal(t, tt.exit, exit.ExitCode(), out)
		require.Contains(t, out, tt.text)
	}
}
