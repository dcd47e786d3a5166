// Package hostile opens images that were made to do harm, each through the
// public door, on a real folder and on a host that counts writes. Families are
// numbered; a family is a table with one image a row.
package hostile

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
)

// openBudget bounds what looking at an image and opening it may allocate in
// all, freed or not.
const openBudget = 32 << 20

func TestMain(m *testing.M) {
	if folder.ChildMain() {
		return
	}
	goleak.VerifyTestMain(m)
}

// row is one image and what is to come of it.
type row struct {
	name  string
	file  folder.Maker
	as    string       // its name in the folder; "": the family's
	more  folder.Files // other files of the folder
	class error        // why it does not open; nil: it opens
	says  string       // parts of the refusal, or of why pieces cannot be read, "..." between them

	bad      []span          // what cannot be read, for class badRead
	badRead  error           // class of that
	heavy    bool            // allocates over the budget in all; a child measures what it holds at once
	want     []fixture.Write // what the rest holds, zeros elsewhere; nil: base
	readOnly string          // part of why it must not be written; "": writing is allowed
	odd      []string        // names of anomalies that opening found, all of them
	found    []string        // places that check names
	also     func(*testing.T, *folder.Sight)
}

// span is the bytes [off, end) of a disk.
type span struct{ off, end int64 }

// blocks are blocks of n bytes, by index.
func blocks(n int64, index ...int64) []span {
	var list []span
	for _, b := range index {
		list = append(list, span{b * n, (b + 1) * n})
	}
	return list
}

// base is what the disks of the families hold unless a row says otherwise.
var base = []fixture.Write{
	{Off: 0, Data: []byte(strings.Repeat("first sector....", 32))},
	{Off: 3*mib + 4096, Data: []byte(strings.Repeat("in the middle...", 32))},
	{Off: 8*mib - 512, Data: []byte(strings.Repeat("the last sector.", 32))},
}

// rows opens each image of a family; name is what files are called.
func rows(t *testing.T, name string, family []row) {
	for _, r := range family {
		if r.as == "" {
			r.as = name
		}
		t.Run(r.name, func(t *testing.T) {
			folder.Watch(t)
			files := folder.Files{r.as: r.file}
			for other, m := range r.more {
				files[other] = m
			}
			dir := folder.Make(t, files)
			folder.Untouched(t, dir)
			fds := openFiles(t)
			t.Cleanup(func() { require.Equal(t, fds, openFiles(t), "files were left open") })
			r.onHost(t, dir)
			r.onSim(t, dir)
		})
	}
}

func (r *row) onHost(t *testing.T, dir string) {
	l := folder.Open(t, dir)
	before := allocated()
	s, h := folder.See(l, r.as)
	if !r.heavy {
		require.Less(t, allocated()-before, uint64(openBudget), "bytes allocated to open it")
	}
	r.judge(t, l, s, h)
}

func (r *row) onSim(t *testing.T, dir string) {
	sim := folder.Sim(t, dir)
	changes := sim.Changes()
	l := folder.OpenDir(t, sim.Dir(folder.SimTop))
	s, h := folder.See(l, r.as)
	r.judge(t, l, s, h)
	for _, path := range sim.Opened() {
		require.True(t, strings.HasPrefix(path, folder.SimTop), "%s was opened", path)
	}
	require.Zero(t, sim.Refused(), "writes were tried")
	require.Equal(t, changes, sim.Changes())
}

func (r *row) judge(t *testing.T, l *ops.Library, s *folder.Sight, h *ops.Handle) {
	t.Helper()
	if r.class != nil {
		require.Nil(t, h, "it opened")
		require.ErrorIs(t, s.Err, r.class)
		says(t, s.Err, r.says)
		if r.also != nil {
			r.also(t, s)
		}
		return
	}
	require.NoError(t, s.Err)
	require.NoError(t, s.Read(h))
	r.judgeContent(t, s)
	if r.readOnly == "" {
		require.Empty(t, s.Found.Info.ReadOnly)
	} else {
		require.Contains(t, s.Found.Info.ReadOnly, r.readOnly)
	}
	require.ElementsMatch(t, r.odd, names(s.Found.Info.Anomalies))
	if r.found != nil {
		require.Subset(t, check(t, l, r.as), r.found)
	}
	if r.also != nil {
		r.also(t, s)
	}
}

// judgeContent asks that exactly the bad span cannot be read, and that all else
// is right.
func (r *row) judgeContent(t *testing.T, s *folder.Sight) {
	t.Helper()
	bad := map[int64]bool{}
	for _, b := range s.Bad {
		in := func(x span) bool { return x.off <= b.Off && b.Off < x.end }
		require.True(t, slices.ContainsFunc(r.bad, in), "read at %#x: %v", b.Off, b.Err)
		require.ErrorIs(t, b.Err, r.badRead)
		says(t, b.Err, r.says)
		bad[b.Off] = true
	}
	if s.Data == nil {
		return
	}
	want := make([]byte, s.Size)
	writes := r.want
	if writes == nil {
		writes = base
	}
	for _, w := range writes {
		if w.Off < s.Size {
			copy(want[w.Off:], w.Data)
		}
	}
	for _, x := range r.bad {
		for off := x.off; off < x.end; off += folder.Piece {
			require.True(t, bad[off], "read at %#x gave bytes", off)
		}
		clear(want[x.off:x.end])
	}
	for off := int64(0); off < s.Size; off += 512 {
		if !slices.Equal(want[off:off+512], s.Data[off:off+512]) {
			require.Equal(t, string(want[off:off+512]), string(s.Data[off:off+512]), "content at %#x", off)
		}
	}
}

// says asks that the text of err has these parts, in order, "..." between them.
func says(t *testing.T, err error, parts string) {
	t.Helper()
	require.NotEmpty(t, parts, "the row has to say what %q is to name", err)
	rest := err.Error()
	for _, part := range strings.Split(parts, "...") {
		_, after, ok := strings.Cut(rest, part)
		require.True(t, ok, "%q does not say %q", err, parts)
		rest = after
	}
}

func names(list []ops.Anomaly) []string {
	var all []string
	for _, a := range list {
		all = append(all, a.Name)
	}
	return all
}

// check runs the layer's checker and answers the places it names.
func check(t *testing.T, l *ops.Library, name string) []string {
	t.Helper()
	layer, err := l.OpenLayer(l.Top(name))
	require.NoError(t, err)
	defer func() { require.NoError(t, layer.Close()) }()
	var places []string
	require.NoError(t, layer.(ops.Checker).Check(t.Context(), func(a ops.Anomaly) {
		require.NotEmpty(t, a.Name)
		require.NotEmpty(t, a.Text)
		places = append(places, a.Where)
	}))
	return places
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

// built is a VHDX with changes made after it was laid out.
func built(v fixture.VHDX, change func(m *fixture.VHDXImage)) folder.Maker {
	return folder.Func(func(path string) error {
		m, err := v.Build()
		if err != nil {
			return err
		}
		change(m)
		return m.WriteFile(path)
	})
}

// small is the VHDX that most families damage: 8 blocks of 1 MiB. Its log lies at
// 1 MiB, the metadata at 2 MiB, the BAT at 3 MiB, blocks 0, 3 and 7 behind it.
func small() fixture.VHDX {
	return fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Writes: base}
}

// smallVHD is the VHD that most families damage: 4 blocks of 2 MiB, of which 0, 1
// and 3 are allocated.
func smallVHD() fixture.VHD { return fixture.VHD{Size: 8 * mib, Writes: base} }
