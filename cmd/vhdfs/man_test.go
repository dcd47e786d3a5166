package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// README, help, completion and manual pages say the same of each operation.
func TestDocumentationHoldsTogether(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	app := newApp(io.Discard, io.Discard)
	pages := manPages(app)
	require.Len(t, pages, len(ops.All)+1)
	for _, op := range ops.All {
		page := pages["vhdfs-"+op.Name+".1"]
		exit, help, stderr := command(t, "help", op.Name)
		require.Zero(t, exit, stderr)
		exit, words, stderr := command(t, op.Name, "--generate-bash-completion")
		require.Zero(t, exit, stderr)
		require.Contains(t, string(readme), "| `"+op.Name+"`")
		require.Contains(t, page, roff(op.Brief))
		require.Contains(t, help, op.Brief)
		for _, a := range slices.Concat(op.Args, ops.Common) {
			require.Contains(t, page, ".B "+roff(a.Form())+"\n", op.Name)
			require.Contains(t, page, roff(a.Help), op.Name)
			require.Contains(t, help, a.Form(), op.Name)
			require.Contains(t, strings.Fields(words), a.Key()+"=", op.Name)
		}
		require.Contains(t, pages["vhdfs.1"], roff("vhdfs-"+op.Name+"(1)"))
	}
	for _, c := range app.Commands {
		if !c.Hidden {
			require.Contains(t, pages["vhdfs.1"], "\n.B "+roff(c.Name), c.Name)
		}
	}
}

// Text is never taken for a request of the formatter.
func TestRoff(t *testing.T) {
	for in, want := range map[string]string{
		".vhdfs": `\&.vhdfs`, "'a": `\&'a`, "a-b": `a\-b`, `C:\x`: `C:\ex`, "a\n.b": "a .b",
	} {
		require.Equal(t, want, roff(in))
	}
}

func TestManPagesFormat(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	exit, _, stderr := command(t, "docs", "man", dir)
	require.Zero(t, exit, stderr)
	files, err := filepath.Glob(filepath.Join(dir, "*.1"))
	require.NoError(t, err)
	require.Len(t, files, len(ops.All)+1)
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("needs: groff")
	}
	for _, name := range files {
		out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z", name).CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		require.Empty(t, string(out), name)
	}
}
