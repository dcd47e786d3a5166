package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// logLines are the lines of .vhdfs/log.
func (m *mounted) logLines(t *testing.T) []map[string]any {
	t.Helper()
	b, err := os.ReadFile(m.path(".vhdfs", "log"))
	require.NoError(t, err)
	var list []map[string]any
	for line := range strings.Lines(string(b)) {
		list = append(list, answerOf(t, []byte(line)))
	}
	return list
}

func TestLogShowsEachOperationAsOneLine(t *testing.T) {
	m := serve(t, terms{}, func(dir string) {
		flatFile(t, filepath.Join(dir, "a\n%n\x1b[2J.flat"), "a", mib)
	})
	f, err := os.OpenFile(m.path("a\n%n\x1b[2J.flat", "validate"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("what\x1b=1")
	require.ErrorIs(t, err, syscall.EINVAL)
	_, err = f.WriteString("1")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	b, err := os.ReadFile(m.path(".vhdfs", "log"))
	require.NoError(t, err)
	require.NotContains(t, string(b), "\x1b")
	list := m.logLines(t)
	require.Len(t, list, 2)
	require.Equal(t, float64(32773), list[0]["ReturnValue"])
	require.NotContains(t, list[0], "Job", "it did not run")
	require.Equal(t, "1", list[1]["Job"])
	// The kernel tells of the thread.
	require.DirExists(t, fmt.Sprintf("/proc/self/task/%.0f", list[1]["Process"]))
	require.Equal(t, float64(os.Getuid()), list[1]["User"])
	require.NoDirExists(t, m.image(ops.StateDir), "who only looks leaves nothing")
}

// The log survives the mount once something was changed.
func TestLogSurvivesTheMount(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	for _, request := range []string{"path=a.flat size=1G", "path=n.vhdx size=1G dryrun=true"} {
		_, _ = m.ask(t, ".vhdfs", "create", request)
	}
	require.NoDirExists(t, m.image(ops.StateDir), "nothing was changed yet")
	_, err := m.ask(t, ".vhdfs", "create", "path=n.vhdx size=1G")
	require.NoError(t, err)
	before := m.logLines(t)
	require.Len(t, before, 3)
	dir := m.dir
	m.end(t)

	again := serve(t, terms{}, func(d string) {
		require.NoError(t, os.Rename(filepath.Join(dir, ops.StateDir), filepath.Join(d, ops.StateDir)))
		flatFile(t, filepath.Join(d, "a.flat"), "a", mib)
	})
	require.Equal(t, before, again.logLines(t))
	_, err = again.ask(t, "a.flat", "validate", "1")
	require.NoError(t, err)
	require.Len(t, again.logLines(t), 4)
	b, err := os.ReadFile(again.image(ops.StateDir, "log"))
	require.NoError(t, err)
	require.Equal(t, 4, strings.Count(string(b), "\n"))
	entries, err := os.ReadDir(again.mnt)
	require.NoError(t, err)
	for _, e := range entries {
		require.NotEqual(t, ops.StateDir, e.Name(), "never shown")
	}
}
