package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

const mountTable = `22 1 254:1 / / rw,relatime - ext4 /dev/root rw
36 22 0:31 / /mnt/my\040vms rw,nosuid shared:1 - fuse.vhdfs /vms rw,user_id=1000,group_id=1000,default_permissions
37 22 0:32 / /mnt/sub rw - fuse.vhdfs /vms/sub\134x rw,user_id=0,group_id=0
38 22 0:31 /a.vhdx /mnt/bind rw - fuse.vhdfs /vms rw,user_id=1000
39 22 0:33 / /mnt/one rw - fuse.vhdfs /other/one.vhdx rw,user_id=0
40 22 0:34 / /mnt/x rw - fuse.sshfs host:/vms rw,user_id=0
garbage
41 22 0:35 / /mnt/short rw - fuse.vhdfs
`

func TestParseMounts(t *testing.T) {
	require.Equal(t, []mountLine{
		{"/mnt/my vms", "/vms", "1000"},
		{"/mnt/sub", `/vms/sub\x`, "0"},
		{"/mnt/one", "/other/one.vhdx", "0"},
	}, parseMounts(mountTable))
	_, err := vhdfsMounts()
	require.NoError(t, err)
}

func TestShowing(t *testing.T) {
	mounts := parseMounts(mountTable)
	for _, tt := range []struct{ path, point, rel string }{
		{"/vms/a.vhdx", "/mnt/my vms", "a.vhdx"},
		{"/vms/d/a.vhdx", "/mnt/my vms", "d/a.vhdx"},
		{`/vms/sub\x/a.vhdx`, "/mnt/sub", "a.vhdx"},
		{"/other/one.vhdx", "/mnt/one", "one.vhdx"},
		{"/other/two.vhdx", "", ""},
		{"/vmsmore/a.vhdx", "", ""},
		{"/a.vhdx", "", ""},
	} {
		m, rel, ok := showing(mounts, tt.path)
		require.Equal(t, tt.point != "", ok, tt.path)
		require.Equal(t, tt.point, m.point, tt.path)
		require.Equal(t, tt.rel, rel, tt.path)
	}
}

func TestHostPathOf(t *testing.T) {
	one := filepath.Join(t.TempDir(), "one.vhdx")
	require.NoError(t, os.WriteFile(one, nil, 0o600))
	mounts := append(parseMounts(mountTable), mountLine{point: "/mnt/file", source: one})
	for path, want := range map[string]string{
		"/mnt/my vms/a.vhdx": "/vms/a.vhdx",
		"/mnt/my vms/d/new":  "/vms/d/new",
		"/mnt/my vms":        "/vms",
		"/mnt/sub/b.vhd":     `/vms/sub\x/b.vhd`,
		"/mnt/file/one.vhdx": one,
		"/mnt/x/a.vhdx":      "/mnt/x/a.vhdx",
		"/vms/a.vhdx":        "/vms/a.vhdx",
	} {
		require.Equal(t, want, hostPathOf(mounts, path), path)
	}
}

// A request survives its way to a control file.
func TestRequestAsJSON(t *testing.T) {
	op := &ops.Op{Name: "work", Args: []ops.Arg{
		{Name: "MaxInternalSize", Short: "size", Kind: ops.ArgSize, Words: []ops.Word{{Text: "min"}}, Bare: true},
		{Name: "Path", Kind: ops.ArgNewPath},
		{Name: "Type", Kind: ops.ArgWord, Words: []ops.Word{{Text: "fixed", Number: 2}}},
		{Name: "Force", Kind: ops.ArgBool},
		{Name: "Id", Kind: ops.ArgID},
		{Name: "Mode", Kind: ops.ArgWord, Words: []ops.Word{{Text: "quick", Number: 1}}, Default: "quick"},
	}}
	for _, words := range [][]string{
		{}, {"1"}, {"size=+10G"}, {"min"}, {"path=/a b\n\"c\"", "type=2", "force=yes", "id=01234567-89AB-CDEF-0123-456789abcdef"}, {"dryrun=true", "wait=false", "40G"},
	} {
		want, err := op.ParseWords(words)
		require.NoError(t, err)
		text, err := requestJSON(want)
		require.NoError(t, err)
		got, err := op.Parse(string(text))
		require.NoError(t, err, "%s", text)
		require.Equal(t, want, got, "%s", text)
	}
}

func TestProgressLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := startProgress(&out, "convert")
		time.Sleep(time.Second)
		synctest.Wait()
		require.Empty(t, out.String(), "nothing is known")
		p.set(0, 0)
		require.Empty(t, p.line())
		p.set(1<<20, 5<<30)
		require.Equal(t, "convert: 0%, 1.0 MiB of 5.0 GiB", p.line())
		time.Sleep(10 * time.Second)
		p.set(1<<30+1<<20, 5<<30)
		require.Equal(t, "convert: 20%, 1.0 GiB of 5.0 GiB, 102.4 MiB/s, 40s left", p.line())
		p.set(5<<30, 5<<30)
		require.Contains(t, p.line(), "convert: 100%, 5.0 GiB of 5.0 GiB")
		time.Sleep(time.Second)
		p.end()
		p.end()
		require.True(t, strings.HasSuffix(out.String(), "\r\x1b[K"), "the line goes")
		require.NotContains(t, out.String(), "\n")
	})
}

// Where nobody looks at a terminal there is nothing.
func TestNoProgressElsewhere(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer f.Close()
	for _, p := range []*progress{newProgress(f, "x"), newProgress(&bytes.Buffer{}, "x")} {
		p.set(1, 2)
		require.False(t, p.shown())
		p.end()
	}
	st, err := f.Stat()
	require.NoError(t, err)
	require.Zero(t, st.Size())
}

func TestRounded(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 20: "1.5 GiB", 64 << 40: "64.0 TiB", 1 << 62: "4194304.0 TiB"} {
		require.Equal(t, want, rounded(n))
	}
}

// What this process cannot keep is refused; a line in the log is written.
func TestOperationsWithoutAMount(t *testing.T) {
	dir := folder(t)
	image := filepath.Join(dir, "child.avhdx")
	exit, _, stderr := command(t, "convert", image, "path="+dir+"/n.raw", "wait=false")
	require.Equal(t, 2, exit)
	require.Contains(t, stderr, "wait=false: nobody goes on when this command ends")
	exit, out, stderr := command(t, "convert", image, "path="+dir+"/n.raw", "dryrun=true")
	require.Zero(t, exit, stderr)
	require.Regexp(t, `(?m)^SpaceNeeded +\d+$`, out)
	require.NoFileExists(t, dir+"/n.raw")
	require.NoDirExists(t, dir+"/.vhdfs-state")
	exit, _, stderr = command(t, "convert", image, "path="+dir+"/n.raw")
	require.Zero(t, exit, stderr)
	exit, _, _ = command(t, "validate", filepath.Join(dir, "bad.vhdx"))
	require.Equal(t, 4, exit)
	log, err := os.ReadFile(filepath.Join(dir, ".vhdfs-state", "log"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	require.Len(t, lines, 2)
	require.Contains(t, lines[0], `"Operation":"ConvertVirtualHardDisk","Image":"`+image+`","Request":"path=`+dir+`/n.raw","ReturnValue":0`)
	require.Contains(t, lines[1], `"ReturnValue":32768`)
}
