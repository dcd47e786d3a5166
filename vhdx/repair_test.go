package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/mend"
	"vhdfs/test/sim"
)

type repairTest struct {
	v    fixture.VHDX
	says []string // what it reports to be about to change
	left []string // what a check finds afterwards
}

func repairTests() map[string]repairTest {
	two := []fixture.Write{{Off: 0, Data: fill(4096, 1)}, {Off: 5 * mib, Data: fill(512, 2)}}
	small := fixture.VHDX{Size: 7*mib + 4096, BlockSize: 1 << 20, Writes: two}
	with := func(change func(v *fixture.VHDX)) fixture.VHDX { v := small; change(&v); return v }
	child := with(func(v *fixture.VHDX) { v.Parent = parentLocator() })
	entry := func(i int64, e uint64) fixture.VHDX {
		return with(func(v *fixture.VHDX) { v.Entries = map[int64]uint64{i: e} })
	}
	first := uint64(4 * mib) // where block 0 is, block 5 behind it
	garbage := with(func(v *fixture.VHDX) { v.Log = &fixture.Log{Garbage: true}; v.BadHeader[0] = true })
	dirty := with(func(v *fixture.VHDX) { v.Log = &fixture.Log{Tables: true} })
	dirtyChild := dirty
	dirtyChild.Parent = parentLocator()
	note := []string{"vhdx.space.leaked"}
	return map[string]repairTest{
		"sound":          {v: small},
		"sound child":    {v: child},
		"sound fixed":    {v: with(func(v *fixture.VHDX) { v.Fixed = true })},
		"header 1":       {v: with(func(v *fixture.VHDX) { v.BadHeader[0] = true }), says: []string{"vhdx.header.invalid"}},
		"header 2":       {v: with(func(v *fixture.VHDX) { v.BadHeader[1] = true }), says: []string{"vhdx.header.invalid"}},
		"equal headers":  {v: with(func(v *fixture.VHDX) { v.Sequence = [2]uint64{7, 7} }), says: []string{"vhdx.header.equal"}},
		"empty log":      {v: with(func(v *fixture.VHDX) { v.Log = &fixture.Log{} }), says: []string{"vhdx.log.empty"}},
		"garbage log":    {v: garbage, says: []string{"vhdx.header.invalid", "vhdx.log.empty"}},
		"dirty log":      {v: dirty, says: []string{"vhdx.log.dirty"}},
		"child's log":    {v: dirtyChild, says: []string{"vhdx.log.dirty"}},
		"region table 1": {v: with(func(v *fixture.VHDX) { v.BadRegion[0] = true }), says: []string{"vhdx.region.invalid"}},
		"region table 2": {v: with(func(v *fixture.VHDX) { v.BadRegion[1] = true }), says: []string{"vhdx.region.invalid"}},
		"tables differ": {
			v: with(func(v *fixture.VHDX) {
				v.Patches = []fixture.Patch{{Off: fixture.VHDXRegion2 + 40, Data: []byte{1}, Repair: true}}
			}),
			says: []string{"vhdx.region.mismatch"},
		},
		"all of it": {
			v: with(func(v *fixture.VHDX) {
				v.Log, v.BadHeader[1], v.BadRegion[1] = &fixture.Log{Tables: true}, true, true
			}),
			says: []string{"vhdx.header.invalid", "vhdx.log.dirty", "vhdx.region.invalid"},
		},
		"offset of nothing":    {v: entry(3, 64<<20), says: []string{"vhdx.bat.offset"}},
		"offset of zeros":      {v: entry(3, first|2), says: []string{"vhdx.bat.offset"}},
		"kept with another":    {v: entry(3, first|3), says: []string{"vhdx.bat.overlap"}},
		"reserved bit of zero": {v: entry(3, 1<<3|2), says: []string{"vhdx.bat.invalid"}},
		"reserved bit of full": {v: entry(0, first|1<<19|6), says: []string{"vhdx.bat.invalid"}},
		"reserved bit of a bitmap": {
			v: with(func(v *fixture.VHDX) {
				v.Parent = parentLocator()
				v.Entries = map[int64]uint64{4096: 4<<20 | 1<<4 | 6}
			}),
			says: []string{"vhdx.bat.bitmap"},
		},
		"old bytes": {
			v: with(func(v *fixture.VHDX) {
				v.Writes = append([]fixture.Write{{Off: 2*mib + 8192, Data: fill(70_144, 9)}}, two...)
				v.States = map[int64]uint8{2: 2}
			}),
			says: note, left: note,
		},
		"old bytes kept twice": {
			v: with(func(v *fixture.VHDX) {
				v.Writes = append([]fixture.Write{{Off: 2*mib + 8192, Data: fill(70_144, 9)}}, two...)
				v.States = map[int64]uint8{2: 2}
				v.Entries = map[int64]uint64{3: first + 1<<20, 4: first + 1<<20 | 3}
			}),
			says: []string{"vhdx.bat.offset", "vhdx.bat.overlap", "vhdx.space.leaked"}, left: note,
		},
		"bytes behind the last block": {
			v:    with(func(v *fixture.VHDX) { v.Patches = []fixture.Patch{{Off: 8*mib - 1, Data: []byte{9}}} }),
			says: note,
		},
	}
}

// damaged is the image as every repair is tried on it.
func (c repairTest) damaged(t testing.TB) mend.Case {
	return mend.Case{
		Place: func() *sim.Host { h, _ := place(t, c.v); return h },
		Open: func(h *sim.Host) (mend.Writer, error) {
			f, err := h.Dir("/img").Open(testImage, ops.Write)
			require.NoError(t, err)
			l, err := Format.Open(f, ops.OpenOptions{Write: true, Repair: true, Ext: ".vhdx", Cache: ops.NewCache(8 << 20)})
			if err != nil {
				return nil, err
			}
			return l.(mend.Writer), nil
		},
		Sound: func(h *sim.Host, closed bool) error {
			if closed {
				return c.sound(t, h, true, c.left)
			}
			return c.sound(t, h, false, []string{"vhdx.space.leaked"}) // spare space of a session that was cut off
		},
		Says:  len(c.says),
		Limit: repairStates(),
	}
}

func openRepair(t testing.TB, h *sim.Host) *Writer {
	t.Helper()
	w, err := repairTest{}.damaged(t).Open(h)
	require.NoError(t, err)
	return w.(*Writer)
}

func repair(t testing.TB, w ops.Repairer) (said []string, err error) {
	t.Helper()
	list, err := mend.Repair(t, w)
	for _, a := range list {
		said = append(said, a.Name)
	}
	return said, err
}

// want is what the disk holds, 0xee where that is its parent's.
func (c repairTest) want() []byte {
	b := make([]byte, c.v.Size)
	if c.v.Parent != nil {
		b = fill(len(b), 0xee)
	}
	for _, w := range c.v.Writes {
		if s, ok := c.v.States[w.Off/mib]; !ok || s >= stateFull {
			copy(b[w.Off:], w.Data)
		}
	}
	return b
}

// sound asks that an image has nothing odd about it, but for the log where the power
// went in an open session, and holds what it should.
func (c repairTest) sound(t testing.TB, h *sim.Host, open bool, left []string) error {
	t.Helper()
	d, err := openHost(t, h, ops.Read)
	if err != nil {
		return err
	}
	if !bytes.Equal(c.want(), read(t, d, 0, d.Size())) {
		return errors.New("it reads otherwise")
	}
	for _, name := range check(t, d) {
		name, _, _ = strings.Cut(name, " ")
		if len(left) == 0 || left[0] != name {
			return fmt.Errorf("check says %s", name)
		}
	}
	odd := d.Info().Anomalies
	if d.Info().Log == ops.LogReplayed && open {
		odd = odd[:len(odd)-1]
	}
	if i := d.Info(); len(odd) > 0 || i.ReadOnly != "" || i.Log != ops.LogClean && !open {
		return fmt.Errorf("it says %v, %s, log %s", i.Anomalies, i.ReadOnly, i.Log)
	}
	return d.Close()
}

func TestRepair(t *testing.T) {
	for name, c := range repairTests() {
		t.Run(name, func(t *testing.T) {
			h, m := place(t, c.v)
			link, blocks := m.DataWriteGUID, storedBytes(h)
			w := openRepair(t, h)
			changes := h.Changes()
			said, err := repair(t, w)
			require.NoError(t, err)
			require.Equal(t, c.says, said)
			require.Equal(t, len(c.says) > 0, h.Changes() > changes)
			changes = h.Changes()
			said, err = repair(t, w)
			require.NoError(t, err)
			require.Empty(t, said, "it is mended")
			require.Equal(t, changes, h.Changes())
			require.Empty(t, w.Info().Anomalies)
			require.Empty(t, w.Info().ReadOnly)
			require.NoError(t, w.Close())
			require.NoError(t, c.sound(t, h, false, c.left))
			require.LessOrEqual(t, storedBytes(h), blocks+256*kib, "no more than before, but for log entries")
			d, err := openHost(t, h, ops.Read)
			require.NoError(t, err)
			require.Equal(t, ops.GUID(link), d.Info().LinkID, "children know it by that")
			require.NoError(t, d.Close())

			w = openWriter(t, h)
			_, err = w.WriteAt(fill(512, 7), 6*mib)
			require.NoError(t, err)
			require.NoError(t, w.Close())
		})
	}
}

func storedBytes(h *sim.Host) (n int64) {
	f, err := h.Dir("/img").Open(testImage, ops.Read)
	if err != nil {
		panic(err)
	}
	st, err := f.Stat()
	if err = errors.Join(err, f.Close()); err != nil {
		panic(err)
	}
	return st.Blocks * 512
}

// What nothing in the file decides stays as it is, byte for byte, and is not written.
func TestRepairNeverGuesses(t *testing.T) {
	small := fixture.VHDX{Size: 7*mib + 4096, BlockSize: 1 << 20, Writes: []fixture.Write{{Off: 0, Data: fill(4096, 1)}, {Off: 5 * mib, Data: fill(512, 2)}}}
	entries := func(e map[int64]uint64) fixture.VHDX { v := small; v.Entries = e; return v }
	damaged := func(v fixture.VHDX) fixture.VHDX { v.BadRegion[0] = true; return v }
	lost := damaged(entries(map[int64]uint64{5: 4<<20 | 6}))
	lost.Log = &fixture.Log{}
	last := small
	last.Sequence, last.BadRegion[1] = [2]uint64{1<<64 - 2, 1<<64 - 1}, true
	noLog := damaged(small)
	noLog.Patches = []fixture.Patch{
		{Off: fixture.VHDXHeader1 + 68, Data: make([]byte, 4), Repair: true},
		{Off: fixture.VHDXHeader2 + 68, Data: make([]byte, 4), Repair: true},
	}
	for name, tt := range map[string]struct {
		v       fixture.VHDX
		refuses bool
	}{
		"blocks that overlap":             {damaged(entries(map[int64]uint64{5: 4<<20 | 6})), false},
		"an empty log, and that":          {lost, true},
		"past the end":                    {damaged(entries(map[int64]uint64{3: 64<<20 | 6})), false},
		"no such state":                   {damaged(entries(map[int64]uint64{3: 64<<20 | 5})), false},
		"reserved bits over another":      {damaged(entries(map[int64]uint64{3: 4<<20 | 1<<7 | 6})), false},
		"reserved bits and an offset":     {damaged(entries(map[int64]uint64{3: 64<<20 | 1<<7})), false},
		"no sequence number is left":      {last, true},
		"no log":                          {noLog, true},
		"offset beside a block past it":   {entries(map[int64]uint64{2: 64 << 20, 3: 64<<20 | 6}), false},
		"an offset where blocks overlap":  {entries(map[int64]uint64{2: 64 << 20, 5: 4<<20 | 6}), false},
		"reserved bits in a lost block 1": {damaged(entries(map[int64]uint64{3: 64<<20 | 1<<7 | 6})), false},
	} {
		t.Run(name, func(t *testing.T) {
			h, m := place(t, tt.v)
			w := openRepair(t, h)
			said, err := repair(t, w)
			require.NoError(t, err)
			require.Empty(t, said)
			if tt.refuses {
				_, err = w.WriteAt(make([]byte, 512), 0)
				require.ErrorIs(t, err, ops.ErrReadOnly)
				require.ErrorIs(t, w.Resize(t.Context(), 64*mib, 0), ops.ErrReadOnly)
				require.ErrorIs(t, w.SetDiskID(ops.GUID{1}), ops.ErrReadOnly)
				require.ErrorIs(t, w.SetLinkID(ops.GUID{1}), ops.ErrReadOnly)
				require.NotEmpty(t, w.Info().ReadOnly)
			}
			require.NoError(t, w.Close())
			require.True(t, hostWith(m.Sparse).Bytes("/img/"+testImage).Equal(h.Bytes("/img/"+testImage), 0))
		})
	}
}

// A header is mended, and a log replayed, whatever the block table says.
func TestRepairOfHeadersBesideABadTable(t *testing.T) {
	v := fixture.VHDX{
		Size: 7 * mib, BlockSize: 1 << 20, Writes: []fixture.Write{{Off: 0, Data: fill(512, 1)}},
		Entries: map[int64]uint64{3: 64<<20 | 6}, Log: &fixture.Log{Tables: true}, BadHeader: [2]bool{true, false}, BadRegion: [2]bool{true, false},
	}
	h, _ := place(t, v)
	w := openRepair(t, h)
	said, err := repair(t, w)
	require.NoError(t, err)
	require.Equal(t, []string{"vhdx.header.invalid", "vhdx.log.dirty"}, said)
	require.NoError(t, w.Close())
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	require.Equal(t, ops.LogClean, d.Info().Log)
	require.Equal(t, fill(512, 1), read(t, d, 0, 512))
	require.Len(t, d.Info().Anomalies, 1)
	require.Equal(t, "vhdx.region.invalid", d.Info().Anomalies[0].Name)
	require.NoError(t, d.Close())
}

// The caller writes down what will change before it does, and may stop it.
func TestRepairReportsFirst(t *testing.T) {
	for name, c := range repairTests() {
		t.Run(name, func(t *testing.T) { c.damaged(t).ReportsFirst(t) })
	}
}

// Of a table full of odd entries each is mended, and a thousand are told one by one.
func TestRepairOfAWholeTable(t *testing.T) {
	v := fixture.VHDX{Size: 5000 * mib, BlockSize: 1 << 20, Entries: map[int64]uint64{}}
	for i := range int64(4000) {
		v.Entries[i] = uint64(64+i) << 20
	}
	h, _ := place(t, v)
	w := openRepair(t, h)
	said, err := repair(t, w)
	require.NoError(t, err)
	require.Len(t, said, 1001)
	require.NoError(t, w.Close())
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	require.Empty(t, check(t, d))
	require.NoError(t, d.Close())
}
