package part_test

import (
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/part"
)

// powered is a disk that remembers what was written since each flush, so that
// every state can be made in which a cut leaves it.
type powered struct {
	content []byte
	flushed []byte
	open    []change // since the last flush
	states  func(state []byte)
}

type change struct {
	off int64
	b   []byte
}

func power(m *image, size int64) *powered {
	p := &powered{content: make([]byte, size)}
	_, _ = m.ReadAt(p.content[:min(size, m.size)], 0)
	p.flushed = append([]byte{}, p.content...)
	return p
}

func (p *powered) Size() int64 { return int64(len(p.content)) }

func (p *powered) ReadAt(b []byte, off int64) (int, error) {
	n := copy(b, p.content[min(off, p.Size()):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (p *powered) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > p.Size() {
		return 0, io.ErrShortWrite
	}
	copy(p.content[off:], b)
	p.open = append(p.open, change{off, append([]byte{}, b...)})
	return len(b), nil
}

// Flush shows every state of what it makes durable: each subset of the writes,
// with one of them torn in each way that leaves sectors of 512 bytes whole.
func (p *powered) Flush() error {
	for set := range 1 << len(p.open) {
		for torn := -1; torn < len(p.open); torn++ {
			for half := range 2 {
				p.show(set, torn, half)
			}
		}
	}
	p.flushed, p.open = append([]byte{}, p.content...), nil
	return nil
}

func (p *powered) show(set, torn, half int) {
	if p.states == nil {
		return
	}
	b := append([]byte{}, p.flushed...)
	for i, c := range p.open {
		if set&(1<<i) == 0 {
			continue
		}
		for s := 0; s < len(c.b); s += 512 {
			if i != torn || s/512%2 == half {
				copy(b[c.off+int64(s):], c.b[s:min(s+512, len(c.b))])
			}
		}
	}
	p.states(b)
}

func (p *powered) image() *image {
	m := newImage(p.Size())
	m.put(0, p.content)
	return m
}

// A disk that grew or is about to shrink gets its backup at the end. Whatever a
// cut leaves, the first copy can be used and names the same partitions, and
// moving again finishes the work.
func TestMoveGPT(t *testing.T) {
	for _, tt := range []struct {
		name         string
		sector       int64
		size, end    int64 // sectors: of the disk that is there, and that is wanted
		tableOf      int64 // sectors of the disk that the table was written for
		stays, moved bool  // an old header that nobody wipes; anything to do
	}{
		{"grown", 512, 8192, 8192, 4096, false, true},
		{"grown, 4096-byte sectors", 4096, 2048, 2048, 1024, false, true},
		{"grown by one sector", 512, 4097, 4097, 4096, false, true},
		{"grown by less than a table", 512, 4106, 4106, 4096, false, true},
		{"grown by just a table", 512, 4129, 4129, 4096, false, true},
		{"to shrink", 512, 4096, 2048, 4096, true, true},
		{"to shrink by one sector", 512, 4096, 4095, 4096, true, true},
		{"to shrink to the floor", 512, 4096, 233, 4096, true, true},
		{"to shrink, 4096-byte sectors", 4096, 1024, 500, 1024, true, true},
		{"as it is", 512, 4096, 4096, 4096, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := gpt{sector: tt.sector, sectors: tt.tableOf, parts: oneGPT}
			d := power(g.image(), tt.size*tt.sector)
			before := read(t, d.image(), uint32(tt.sector))
			states := 0
			d.states = func(state []byte) {
				states++
				c := &powered{content: state}
				tab := read(t, c.image(), uint32(tt.sector))
				require.Equal(t, before.Partitions, tab.Partitions)
				require.NotContains(t, fmt.Sprint(names(tab)), "part.gpt.primary")
				if tt.size-tt.tableOf > 33 || tt.tableOf-tt.end > 33 { // else the new one is written over the old
					require.NotContains(t, fmt.Sprint(names(tab)), "part.gpt.backup:", "the backup that the first copy names")
				}
				_, err := part.Tables{}.MoveGPT(c, tt.end*tt.sector, uint32(tt.sector))
				require.NoError(t, err)
				requireMoved(t, c, tt.end, tt.sector, before)
			}
			moved, err := part.Tables{}.MoveGPT(d, tt.end*tt.sector, uint32(tt.sector))
			require.NoError(t, err)
			require.Equal(t, tt.moved, moved)
			require.Equal(t, tt.moved, states > 0)
			require.Empty(t, d.open, "all of it is durable")
			requireMoved(t, d, tt.end, tt.sector, before)
			old := d.content[(tt.tableOf-1)*tt.sector:][:8]
			require.Equal(t, tt.stays || !tt.moved, string(old) == "EFI PART", "the old header")
			again, err := part.Tables{}.MoveGPT(d, tt.end*tt.sector, uint32(tt.sector))
			require.NoError(t, err)
			require.False(t, again)
		})
	}
}

// requireMoved cuts the disk at its end and finds nothing odd about its table.
func requireMoved(t *testing.T, d *powered, end, sector int64, before *part.Table) {
	t.Helper()
	cut := newImage(end * sector)
	cut.put(0, d.content[:end*sector])
	tab := read(t, cut, uint32(sector))
	require.Empty(t, tab.Anomalies)
	require.True(t, tab.BackupAtEnd)
	require.Equal(t, before.ID, tab.ID)
	require.Equal(t, before.Partitions, tab.Partitions)
	require.Equal(t, before.FirstUsable, tab.FirstUsable)
	require.Equal(t, uint32(end-1), le.Uint32(d.content[446+12:]), "the protective entry")
	room := int64(32 * 512 / sector)
	require.Equal(t, (end-1-room)*sector-1, tab.LastUsable)
}

// What forbids the move is seen before anything is written.
func TestMoveGPTRefuses(t *testing.T) {
	base := gpt{sector: 512, sectors: 4096, parts: oneGPT}
	broken := base
	broken.patch = func(h []byte, backup bool) {
		if !backup {
			h[0] = 'X'
		}
	}
	mbr := newImage(4096 * 512)
	mbr.put(0, bootSector(1, entry{kind: 7, start: 100, count: 100}))
	for _, tt := range []struct {
		name  string
		image *image
		end   int64
		class error
		text  string
	}{
		{"no table", newImage(4096 * 512), 4096, ops.ErrUsage, "movegpt: the disk has no GPT"},
		{"mbr", mbr, 4096, ops.ErrUsage, "movegpt: the disk has no GPT"},
		{"first copy damaged", broken.image(), 4096, ops.ErrCorrupt, `the first GPT, in sector 1, cannot be used: signature "XFI PART"`},
		{"a partition behind the end", base.image(), 232, ops.ErrUsage, "partition 1 ends with sector 199, the last that a disk of 232 sectors can use is 198"},
		{"no room for tables", gpt{sector: 512, sectors: 4096}.image(), 67, ops.ErrUsage, "a disk of 67 sectors has no room for two tables and the usable sectors from 34"},
		{"to nothing", base.image(), 0, ops.ErrUsage, "a disk of 0 sectors has no room"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := power(tt.image, tt.image.size)
			_, err := part.Tables{}.MoveGPT(d, tt.end*512, 512)
			require.ErrorIs(t, err, tt.class)
			require.ErrorContains(t, err, tt.text)
			require.Empty(t, d.open)
			require.Equal(t, d.flushed, d.content)
		})
	}
}

// Other partitions in sector 0 keep the size of the protective entry, a damaged
// backup is written anew, and an old header within a partition is a guest's.
func TestMoveGPTLeavesAlone(t *testing.T) {
	t.Run("a hybrid table", func(t *testing.T) {
		m := gpt{sector: 512, sectors: 4096, parts: oneGPT}.image()
		boot := bootSector(0, entry{0, 0xee, 1, 99}, entry{0x80, 0x07, 100, 100})
		m.put(0, boot)
		d := power(m, 8192*512)
		_, err := part.Tables{}.MoveGPT(d, 8192*512, 512)
		require.NoError(t, err)
		require.Equal(t, boot, d.content[:512])
		require.True(t, read(t, d.image(), 512).BackupAtEnd)
	})
	t.Run("a damaged backup", func(t *testing.T) {
		m := gpt{sector: 512, sectors: 4096, parts: oneGPT}.image()
		m.pieces[4095*512][20] ^= 1
		d := power(m, 4096*512)
		moved, err := part.Tables{}.MoveGPT(d, 4096*512, 512)
		require.NoError(t, err)
		require.True(t, moved)
		require.Empty(t, read(t, d.image(), 512).Anomalies)
	})
	t.Run("a header inside a partition", func(t *testing.T) {
		g := gpt{sector: 512, sectors: 4096, parts: map[int]gptPart{1: {kind: basicData, first: 4000, last: 6000}}}
		g.patch = func(h []byte, _ bool) { le.PutUint64(h[48:], 7000) }
		d := power(g.image(), 8192*512)
		_, err := part.Tables{}.MoveGPT(d, 8192*512, 512)
		require.NoError(t, err)
		require.Equal(t, "EFI PART", string(d.content[4095*512:][:8]))
	})
	t.Run("bytes behind the header", func(t *testing.T) {
		m := gpt{sector: 512, sectors: 4096, parts: oneGPT}.image()
		m.pieces[512][500] = 7
		d := power(m, 8192*512)
		_, err := part.Tables{}.MoveGPT(d, 8192*512, 512)
		require.NoError(t, err)
		require.Equal(t, byte(7), d.content[512+500])
	})
}

// sfdisk agrees, before and after.
func TestMoveGPTAgainstSfdisk(t *testing.T) {
	path := blankFile(t, 100<<20)
	run(t, "label: gpt\nsize=10M\nsize=20M\n", "sfdisk", "-q", path)
	for _, size := range []int64{200 << 20, 40 << 20} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		st, err := f.Stat()
		require.NoError(t, err)
		if size > st.Size() {
			require.NoError(t, f.Truncate(size))
		}
		_, err = part.Tables{}.MoveGPT(&openFile{f}, size, 512)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(size))
		require.NoError(t, f.Close())
		out := run(t, "", "sfdisk", "--verify", path)
		require.Contains(t, out, "No errors detected.")
		require.NotContains(t, out, "backup")
		require.NotContains(t, out, "PMBR")
	}
}

type openFile struct{ *os.File }

func (d *openFile) Size() int64 {
	st, err := d.Stat()
	if err != nil {
		panic(err)
	}
	return st.Size()
}

func (d *openFile) Flush() error { return d.Sync() }

// What a table proves free, and why it may prove nothing.
func TestLayout(t *testing.T) {
	mib := int64(1 << 20)
	at := func(firsts ...int64) map[int]gptPart { // partitions of 1 MiB
		parts := map[int]gptPart{}
		for i, f := range firsts {
			parts[i+1] = gptPart{kind: basicData, first: uint64(f * 2048), last: uint64((f+1)*2048 - 1)}
		}
		return parts
	}
	base := gpt{sector: 512, sectors: 16 * 2048, parts: at(5, 2, 9)}
	odd := func(change func(*gpt)) *image {
		g := base
		change(&g)
		return g.image()
	}
	hybrid := base.image()
	hybrid.put(0, bootSector(0, entry{0, 0xee, 1, 99}, entry{0x80, 0x07, 100, 100}))
	badBackup := base.image()
	badBackup.pieces[(16*2048-1)*512][20] ^= 1
	grown := base.image()
	grown.size += mib
	elsewhere := odd(func(g *gpt) {
		g.patch = func(h []byte, backup bool) {
			if backup {
				le.PutUint64(h[72:], 12*2048)
			}
		}
	})
	elsewhere.put(12*mib, elsewhere.pieces[16*mib-33*512])
	floor := 10*mib + 33*512
	mbr := newImage(16 * mib)
	mbr.put(0, bootSector(1, entry{kind: 7, start: 2048, count: 2048}))
	empty := newImage(16 * mib)
	empty.put(0, bootSector(1))
	outside := newImage(16 * mib)
	outside.put(0, bootSector(1, entry{kind: 7, start: 2048, count: 1 << 20}))
	for _, tt := range []struct {
		name  string
		image *image
		want  ops.Layout
	}{
		{"gpt", base.image(), ops.Layout{MinInternalSize: floor, GPT: true, BackupAtEnd: true,
			Free: ranges(mib, mib, 3*mib, 2*mib, 6*mib, 3*mib, 10*mib, 6*mib-33*512)}},
		{"gpt that fills the disk", odd(func(g *gpt) { g.parts = map[int]gptPart{1: {kind: basicData, first: 34, last: 16*2048 - 34}} }),
			ops.Layout{MinInternalSize: 16 * mib, GPT: true, BackupAtEnd: true}},
		{"gpt without partitions", odd(func(g *gpt) { g.parts = nil }), ops.Layout{Unknown: "its partition table has no partitions", GPT: true, BackupAtEnd: true,
			Free: ranges(mib, 15*mib-33*512)}},
		{"overlapping partitions", odd(func(g *gpt) { g.parts = at(2, 2) }), ops.Layout{MinInternalSize: 3*mib + 33*512, GPT: true, BackupAtEnd: true}},
		{"entries of the backup elsewhere", elsewhere, ops.Layout{MinInternalSize: floor, GPT: true}},
		{"grown", grown, ops.Layout{MinInternalSize: floor, GPT: true}},
		{"bad backup", badBackup, ops.Layout{MinInternalSize: floor, GPT: true}},
		{"copies that differ", odd(func(g *gpt) {
			g.patchEntries = func(b []byte, backup bool) {
				if backup {
					b[200] = 1
				}
			}
		}), ops.Layout{MinInternalSize: floor, GPT: true}},
		{"hybrid", hybrid, ops.Layout{MinInternalSize: floor, GPT: true, BackupAtEnd: true}},
		{"no protective entry", odd(func(g *gpt) { g.noMBR = true }), ops.Layout{MinInternalSize: floor, GPT: true, BackupAtEnd: true}},
		{"usable sectors over the backup", odd(func(g *gpt) { g.patch = func(h []byte, _ bool) { le.PutUint64(h[48:], 16*2048-5) } }),
			ops.Layout{MinInternalSize: floor, GPT: true, BackupAtEnd: true}},
		{"usable sectors over the first copy", odd(func(g *gpt) { g.patch = func(h []byte, _ bool) { le.PutUint64(h[40:], 10) } }),
			ops.Layout{MinInternalSize: floor, GPT: true, BackupAtEnd: true}},
		{"mbr", mbr, ops.Layout{MinInternalSize: 2 * mib}},
		{"empty mbr", empty, ops.Layout{Unknown: "its partition table has no partitions"}},
		{"a partition that leaves the disk", outside, ops.Layout{Unknown: "a partition is not within the disk"}},
		{"nothing", newImage(16 * mib), ops.Layout{Unknown: "it has no partition table"}},
		{"both copies gone", odd(func(g *gpt) { g.patch = func(h []byte, _ bool) { h[0] = 0 } }), ops.Layout{Unknown: "neither copy of its GPT can be used"}},
		{"no room for the backup", odd(func(g *gpt) { g.parts = map[int]gptPart{1: {kind: basicData, first: 34, last: 16*2048 - 3}} }),
			ops.Layout{Unknown: "the backup GPT has no room behind the last partition", GPT: true, BackupAtEnd: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := part.Tables{}.Layout(tt.image, tt.image.size, 512)
			require.NoError(t, err)
			require.Equal(t, &tt.want, got)
		})
	}
	fails := base.image()
	fails.fail = 3
	_, err := part.Tables{}.Layout(fails, fails.size, 512)
	require.ErrorIs(t, err, errDisk)

}

// ranges are pairs of offset and length.
func ranges(pairs ...int64) (list []ops.Range) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, ops.Range{Off: pairs[i], Len: pairs[i+1]})
	}
	return list
}
