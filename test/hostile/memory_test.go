package hostile

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

// extraMemory bounds what a process that looks at one image may hold at once,
// beyond what it started with: the 32 MiB of an image, and the heap that Go
// keeps back for as much again.
const extraMemory = 64 << 20

// huge is the largest disk in the smallest blocks: a block table of 512 MiB.
func huge() fixture.VHDX {
	return fixture.VHDX{Size: 64 << 40, BlockSize: 1 << 20, Writes: []fixture.Write{
		{Off: 0, Data: []byte("first")},
		{Off: 33 * tib, Data: []byte("middle")},
		{Off: 64*tib - 512, Data: []byte("last")},
	}}
}

func TestH19LargestTable(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{"huge.vhdx": huge()})
	folder.Untouched(t, dir)
	r, _ := folder.LookInChild(t, dir, []string{"huge.vhdx"})
	require.Equal(t, folder.Outcome{Size: 64 << 40, Notes: []string{"fixture", "", "", dir + "/huge.vhdx", ""}}, r.Images["huge.vhdx"])
	require.Less(t, r.Extra, int64(extraMemory))

	l := folder.Open(t, dir)
	before := allocated()
	h, err := l.Open(l.Top("huge.vhdx"), ops.Read)
	require.NoError(t, err)
	require.Less(t, allocated()-before, uint64(openBudget))
	for _, w := range huge().Writes {
		p := make([]byte, len(w.Data))
		_, err := h.ReadAt(p, w.Off)
		require.NoError(t, err)
		require.Equal(t, string(w.Data), string(p))
	}
	require.NoError(t, h.Close())
}

// The largest table full of hostile entries, every page of it another.
func TestH19EveryPageOfTheTableIsBad(t *testing.T) {
	folder.Watch(t)
	v := huge()
	v.Size, v.Writes = tib, nil // 2,049 pages of the table
	file := built(v, func(m *fixture.VHDXImage) {
		for page := range int64(2048) {
			m.Write(m.BATOff+page*4096, le64(uint64(page)<<20|6))
		}
	})
	dir := folder.Make(t, folder.Files{"disk.vhdx": file})
	folder.Untouched(t, dir)
	r, _ := folder.LookInChild(t, dir, []string{"disk.vhdx"})
	require.Empty(t, r.Images["disk.vhdx"].Err)
	require.NotZero(t, r.Images["disk.vhdx"].Bad)
	require.Less(t, r.Extra, int64(extraMemory))
}

func TestH27LogsHoldLittle(t *testing.T) {
	folder.Watch(t)
	file := withBigLog(64<<20, func(m *fixture.VHDXImage) {
		e := m.Get(m.LogOff, 4096)
		for i := range 16_000 {
			m.Write(m.LogOff, e)
			putEntry(m, bigLogAt+4096*int64(i), minimal(m, uint64(i)+1, 0))
		}
	})
	dir := folder.Make(t, folder.Files{"disk.vhdx": file})
	folder.Untouched(t, dir)
	r, _ := folder.LookInChild(t, dir, []string{"disk.vhdx"})
	require.Empty(t, r.Images["disk.vhdx"].Err)
	require.Less(t, r.Extra, int64(extraMemory))
}

// Every zero descriptor and every page that one log of 1 MiB has room for.
func TestH24LogsHoldLittle(t *testing.T) {
	folder.Watch(t)
	e := fixture.LogEntry{}
	for i := range int64(32_000) {
		e.Descriptors = append(e.Descriptors, fixture.Descriptor{Off: 4*mib + i%256*8192, Zero: 4096})
	}
	dir := folder.Make(t, folder.Files{"disk.vhdx": logged(e)})
	folder.Untouched(t, dir)
	r, _ := folder.LookInChild(t, dir, []string{"disk.vhdx"})
	require.Less(t, r.Extra, int64(extraMemory))
}

func TestH09LargestTableOfVHD(t *testing.T) {
	folder.Watch(t)
	v := fixture.VHD{Size: 2040 * gib, BlockSize: 128 << 10, Writes: []fixture.Write{ // a table of 64 MiB
		{Off: 2040*gib - 512, Data: []byte("last")},
	}}
	dir := folder.Make(t, folder.Files{"disk.vhd": v})
	folder.Untouched(t, dir)
	r, _ := folder.LookInChild(t, dir, []string{"disk.vhd"})
	require.Empty(t, r.Images["disk.vhd"].Err)
	require.EqualValues(t, 2040*gib, r.Images["disk.vhd"].Size)
	require.Less(t, r.Extra, int64(extraMemory))
}

// Twenty of the largest at once, all open: the caches share one budget.
func TestH50TwentyOfTheLargest(t *testing.T) {
	folder.Watch(t)
	files := folder.Files{}
	var names []string
	for i := range 20 {
		name := fmt.Sprintf("huge%d.vhdx", i)
		names = append(names, name)
		v := huge()
		v.DiskID, v.DataWriteGUID = [16]byte{1, byte(i)}, [16]byte{2, byte(i)}
		files[name] = v
	}
	dir := folder.Make(t, files)
	folder.Untouched(t, dir)
	r, _ := folder.LookInChild(t, dir, names)
	for name, o := range r.Images {
		require.Empty(t, o.Err, name)
		require.Zero(t, o.Bad, name)
	}
	require.Less(t, r.Extra, int64(256<<20))
}

// Files of the greatest apparent size that hold nothing: work follows what is
// stored, not what a size says.
func TestH04SparseGiants(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{"keep.txt": folder.Raw("x")})
	for size, name := range map[int64]string{16*tib - 4096: "vast", 1 << 40: "large"} {
		for _, ext := range []string{".vhdx", ".avhdx", ".vhd", ".avhd", ".vhds", ".iso", ".vfd"} {
			folder.Add(t, dir, folder.Files{name + ext: folder.Hole(size)})
		}
	}
	folder.Untouched(t, dir)
	l := folder.Open(t, dir)
	list, err := l.List(".")
	require.NoError(t, err)
	require.Len(t, list, 14)
	before := allocated()
	for _, e := range list {
		s, h := folder.See(l, e.Name)
		require.Nil(t, h, "%s opened", e.Name)
		require.ErrorIs(t, s.Err, ops.ErrCorrupt, e.Name)
	}
	require.Less(t, allocated()-before, uint64(openBudget))
}

// On a host in memory files can be far larger than on a real one.
func TestH04FourExbibytes(t *testing.T) {
	folder.Watch(t)
	var family []struct {
		name string
		head folder.Maker
		tail []byte
		size int64 // of the disk, 0: refused
	}
	footer := fixture.VHD{Size: 8 * mib, Type: 2}.Bytes()[8*mib:]
	add := func(name string, head folder.Maker, tail []byte, size int64) {
		family = append(family, struct {
			name string
			head folder.Maker
			tail []byte
			size int64
		}{name, head, tail, size})
	}
	add("disk.vhdx", small(), nil, 8*mib)
	add("dirty.vhdx", logged(update(inBlock0())), nil, 8*mib)
	add("disk.vhd", smallVHD(), nil, 8*mib) // its end footer is in the middle now
	add("fixed.vhd", folder.Raw{}, footer, 8*mib)
	for _, c := range family {
		t.Run(c.name, func(t *testing.T) {
			dir := folder.Make(t, folder.Files{c.name: c.head})
			host := folder.Sim(t, dir).Clone()
			d := host.Dir(folder.SimTop)
			f, err := d.Open(c.name, ops.Write)
			require.NoError(t, err)
			const size = 1 << 62 // as far as this host goes
			require.NoError(t, f.Truncate(size, "grow"))
			if c.tail != nil {
				_, err = f.WriteAt(c.tail, size-512)
				require.NoError(t, err)
			}
			require.NoError(t, f.Close())
			host.Freeze()
			s, h := folder.See(folder.OpenDir(t, d), c.name)
			require.NoError(t, s.Err)
			require.NoError(t, s.Read(h))
			require.Equal(t, c.size, s.Size)
			require.Zero(t, host.Refused())
		})
	}
}
