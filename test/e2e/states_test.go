package e2e

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/test/need"
)

// What may run when. A row is an operation with the errno that it gets in each
// state of its image, nil where it runs; a state that the mount cannot bring about
// yet is skipped. Each cell has a folder of its own with base, middle and leaf: the
// operation is asked of leaf, and of middle where it has children.
var operationStates = []struct {
	file    string // that is written: of the image, or ".vhdfs/create"
	request string // $DIR is the folder of the cell, $IMAGE the image
	cells   states
}{
	{"check", "run", states{}},
	{"validate", "1", states{}},
	{"check", "repair=true", states{reading: unix.EBUSY, writing: unix.EBUSY, attached: unix.EBUSY, direct: unix.EBUSY}},
	{"set-parent", "$DIR/base.vhdx ignoreidmismatch=true", states{reading: unix.EBUSY, writing: unix.EBUSY, attached: unix.EBUSY, direct: unix.EBUSY}},
	{"set-parent", "$DIR/base.vhdx ignoreidmismatch=true dryrun=true", states{}},
	{"settings.json", `{"PhysicalSectorSize":512}`, states{reading: unix.EBUSY, writing: unix.EBUSY, attached: unix.EBUSY, direct: unix.EBUSY}},
	{"convert", "path=$DIR/copy.vhdx", states{writing: unix.EBUSY, attached: unix.EBUSY, direct: unix.EBUSY}},
	{".vhdfs/create", "path=$DIR/child.avhdx parent=$DIR/$IMAGE", states{writing: unix.EBUSY, attached: unix.EBUSY, direct: unix.EBUSY}},
}

// states are the columns: what else is done with the image.
type states struct{ reading, writing, attached, direct, children error }

// bring are the states with what brings them about, and ends them.
var bring = []struct {
	name  string
	image string
	want  func(states) error
	begin func(t *testing.T, dir string) (end func())
}{
	{"nothing", "leaf.avhdx", func(states) error { return nil }, func(*testing.T, string) func() { return func() {} }},
	{"raw open for reading", "leaf.avhdx", func(s states) error { return s.reading }, opened(os.O_RDONLY)},
	{"raw open for writing", "leaf.avhdx", func(s states) error { return s.writing }, opened(os.O_RDWR)},
	{"attached over raw", "leaf.avhdx", func(s states) error { return s.attached }, attached("1")},
	{"attached direct", "fixed.vhdx", func(s states) error { return s.direct }, attached("direct=true")},
	{"has children", "middle.avhdx", func(s states) error { return s.children }, func(*testing.T, string) func() { return func() {} }},
}

func opened(flags int) func(*testing.T, string) func() {
	return func(t *testing.T, dir string) func() {
		f, err := os.OpenFile(filepath.Join(dir, "raw"), flags, 0)
		require.NoError(t, err)
		return func() { require.NoError(t, f.Close()) }
	}
}

func attached(request string) func(*testing.T, string) func() {
	return func(t *testing.T, dir string) func() {
		need.Loop(t)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "attach"), []byte(request), 0))
		return func() { require.NoError(t, os.WriteFile(filepath.Join(dir, "detach"), []byte("1"), 0)) }
	}
}

func TestOperationsByState(t *testing.T) {
	dir := t.TempDir()
	m := Start(t, dir)
	for i := range operationStates {
		for j := range bring {
			makeCell(t, m, fmt.Sprintf("%d-%d", i, j))
		}
	}
	for i, row := range operationStates {
		for j, state := range bring {
			t.Run(row.file+" "+row.request+" "+state.name, func(t *testing.T) {
				service := strings.HasPrefix(row.file, ".vhdfs/")
				if !service { // one request at a time there; elsewhere what is busy is waited for together
					t.Parallel()
				}
				if state.image == "fixed.vhdx" && row.file == "set-parent" {
					t.Skip("a fixed disk has no parent")
				}
				cell := fmt.Sprintf("%d-%d", i, j)
				defer state.begin(t, m.Path(cell, state.image))()
				file := m.Path(cell, state.image, row.file)
				if service {
					file = m.Path(row.file)
				}
				request := strings.NewReplacer("$DIR", cell, "$IMAGE", state.image).Replace(row.request)
				answersWith(t, file, request, state.want(row.cells))
			})
		}
	}
}

// makeCell makes the images of a cell.
func makeCell(t *testing.T, m *Mount, cell string) {
	t.Helper()
	require.NoError(t, os.Mkdir(filepath.Join(m.Images, cell), 0o700))
	for _, request := range []string{"base.vhdx size=4M", "middle.avhdx parent=$DIR/base.vhdx", "leaf.avhdx parent=$DIR/middle.avhdx", "fixed.vhdx size=4M type=fixed"} {
		request = cell + "/" + strings.ReplaceAll(request, "$DIR", cell)
		require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte(request), 0), request)
	}
}

// answersWith writes a request and looks at the errno, and at the answer.
func answersWith(t *testing.T, file, request string, want error) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, failed := f.WriteString(request)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	if want == nil {
		require.NoError(t, failed, "%s", b)
		return
	}
	require.ErrorIs(t, failed, want, "%s", b)
	require.Contains(t, string(b), `"Errno":"`+unix.ErrnoName(want.(unix.Errno))+`"`)
	for _, c := range ops.Classes {
		if c.Errno == want {
			require.Contains(t, string(b), fmt.Sprintf(`"ReturnValue":%d,`, c.Return))
			return
		}
	}
}
