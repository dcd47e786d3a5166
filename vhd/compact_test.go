package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
)

// everything is a compaction that leaves nothing out.
func everything() ops.CompactOptions {
	return ops.CompactOptions{Scan: true, Trim: true, Move: true, Below: func(int64, int64) (bool, error) { return true, nil }}
}

func compact(t testing.TB, w ops.Writer, o ops.CompactOptions) ops.CompactResult {
	t.Helper()
	res, err := w.(ops.Compacter).Compact(context.Background(), o)
	require.NoError(t, err)
	return res
}

// sparse is an image with blocks of zeros and others, in the given order.
func sparse(blockSize uint32, order ...int64) fixture.VHD {
	v := fixture.VHD{Size: 64 * int64(blockSize), BlockSize: blockSize, Blocks: order}
	for _, b := range order {
		if b%2 == 1 {
			v.Writes = append(v.Writes, fixture.Write{Off: b*int64(blockSize) + 512, Data: pattern(512, byte(b))})
		}
	}
	return v
}

type compactTest struct {
	changeTest
	dropped, moved int64
}

func compactTests() map[string]compactTest {
	child := sparse(4096, 0, 1, 2, 4, 3, 6, 5)
	child.Type, child.Parent = 4, parent()
	for _, b := range []int64{0, 2, 4, 6} { // own sectors, of zeros
		child.Writes = append(child.Writes, fixture.Write{Off: b * 4096, Data: make([]byte, 1024)})
	}
	unaligned := sparse(4096, 0, 1, 2, 4, 3, 6, 5)
	unaligned.Unaligned = true
	batmap := unaligned
	batmap.Batmap, batmap.Creator = true, "tap\x00"
	at := batmap.Layout().Batmap // blocks 0 to 6 are full
	batmap.Patches = []fixture.VHDPatch{{Part: "file", Off: at + 512, Data: []byte{0xfe}}, {Part: "file", Off: at + 24, Data: be32(^uint32(0xfe))}}
	gap := sparse(4096, 1, 3)
	gap.Gap = 3 * 4608
	leak := sparse(4096, 9, 1, 11, 3)
	leak.BAT = map[int64]uint32{9: unused, 11: unused}
	leak.Writes = []fixture.Write{leak.Writes[1], leak.Writes[3]}
	small := sparse(512, 0, 1, 2, 4, 3, 6, 5)
	noTail := sparse(4096, 0, 1, 2, 3)
	noTail.NoTail = true
	list := map[string]compactTest{}
	for name, tt := range map[string]struct {
		v              fixture.VHD
		dropped, moved int64
	}{
		"aligned":       {sparse(4096, 0, 1, 2, 4, 3, 6, 5), 4, 2},
		"unaligned":     {unaligned, 4, 2},
		"differencing":  {child, 4, 2},
		"batmap":        {batmap, 4, 2},
		"gap":           {gap, 0, 1},
		"leak":          {leak, 0, 1},
		"small blocks":  {small, 4, 2},
		"no tail":       {noTail, 2, 1},
		"all zeros":     {sparse(4096, 0, 2, 4), 3, 0},
		"nothing to do": {sparse(4096, 1, 3), 0, 0},
	} {
		list[name] = compactTest{dropped: tt.dropped, moved: tt.moved, changeTest: changeTest{
			image: tt.v, zeroParent: tt.v.Type == 4, also: map[bool]func([]byte) error{true: trueBatmap}[tt.v.Batmap],
			change: func(g *crash.Guest) error {
				return besideGuest(g, func(o ops.CompactOptions) error {
					_, err := g.Writer.(ops.Compacter).Compact(context.Background(), o)
					return err
				})
			},
			twice: func(w ops.Writer) error {
				_, err := w.(ops.Compacter).Compact(context.Background(), everything())
				return err
			},
		}}
	}
	return list
}

// besideGuest runs a compaction while a guest writes: into a block before it is
// looked at, after it was, while others move, and into new ones.
func besideGuest(g *crash.Guest, run func(o ops.CompactOptions) error) error {
	o, n := everything(), int64(0)
	var failed error
	o.Progress = func(int64, int64) {
		var err error
		switch n++; n {
		case 1:
			err = g.Write(2*g.Block, 512)
		case 2:
			err = g.Write(0, 512)
		case 3:
			err = errors.Join(g.Write(g.Block+1024%g.Block, 512), g.Flush())
		case 7:
			err = errors.Join(g.Write(3*g.Block, 512), g.Zero(5*g.Block, g.Block, true), g.Write(40*g.Block, 512))
		case 9:
			err = g.Write(5*g.Block, 512)
		}
		failed = errors.Join(failed, err)
	}
	return errors.Join(run(o), failed)
}

func TestCompact(t *testing.T) {
	for name, c := range compactTests() {
		t.Run(name, func(t *testing.T) {
			fill := byte(0)
			if c.image.Type == 4 {
				fill = 0xee
			}
			h := disk(c.image.Bytes())
			before := image(t, h)
			want := model(c.image, fill)
			if c.image.Type == 4 { // where it goes, the parent is zeros, says Below
				for _, b := range []int64{0, 2, 4, 6} {
					copy(want[b*4096:], pattern(1024, fill))
				}
			}
			edit(t, h, func(w ops.Writer) {
				o := everything()
				o.Dry = true
				dry := compact(t, w, o)
				require.True(t, bytes.Equal(before, image(t, h)))
				var last [2]int64
				o.Dry, o.Progress = false, func(done, all int64) {
					require.Greater(t, done, last[0])
					require.GreaterOrEqual(t, all, done)
					last = [2]int64{done, all}
				}
				res := compact(t, w, o)
				require.Equal(t, c.dropped, res.Dropped)
				require.Equal(t, c.moved, res.Moved)
				require.EqualValues(t, len(before), res.Before)
				require.Len(t, image(t, h), int(res.After))
				dry.Trimmed = res.Trimmed
				require.Equal(t, dry, res, "as the dry run said")
				require.Equal(t, ops.CompactResult{Before: res.After, After: res.After}, compact(t, w, everything()), "there is no more to do")
				got, err := readLayer(w, 0, c.image.Size, fill)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got))
			})
			b := image(t, h)
			l := mustOpen(t, b)
			require.Empty(t, findings(t, l))
			require.Empty(t, l.Info().Anomalies)
			require.Equal(t, !c.image.Unaligned && c.image.Gap == 0, l.Info().Aligned && c.image.Gap == 0)
			got, err := readLayer(l, 0, c.image.Size, fill)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
			require.NoError(t, trueBatmap(b))
		})
	}
}

func TestCompactStates(t *testing.T) {
	for name, c := range compactTests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := c.states(t)
			require.NoError(t, err)
			faults := 0
			if !testing.Short() || name == "aligned" || name == "differencing" {
				faults = c.faults(t)
			}
			t.Logf("%d states, %d failed calls", n, faults)
		})
	}
}

func TestCompactNeedsItsSyncs(t *testing.T) {
	for label, name := range map[string]string{
		"vhd.data": "aligned", "vhd.table": "aligned",
	} {
		t.Run(label, func(t *testing.T) { compactTests()[name].needs(t, label) })
	}
}

// After a compaction has answered, the file is no longer than it said, and ends in a
// footer.
func TestCompactedFileStaysShort(t *testing.T) {
	v := sparse(4096, 0, 1, 2, 3, 4, 6, 5)
	for _, dropped := range []string{"", "vhd.trim", "vhd.cut"} {
		h := disk(v.Bytes())
		base := h.Clone()
		h.DropSync(dropped)
		h.Record()
		w := openWriter(t, h)
		res := compact(t, w, everything())
		at := len(h.Events())
		h.Ack("compacted", nil)
		require.NoError(t, w.Close())
		r := crash.Recording{Base: base, Events: h.Events()}
		err := r.Each(1, func(s *crash.State) error {
			if s.At <= at {
				return nil
			}
			host, err := s.Host()
			require.NoError(t, err)
			b, err := host.ReadFile("/d.vhd")
			require.NoError(t, err)
			if int64(len(b)) != res.After || string(b[len(b)-512:]) != string(b[:512]) {
				return fmt.Errorf("%d bytes, not %d, or no footer", len(b), res.After)
			}
			return nil
		})
		require.Equal(t, dropped == "vhd.cut", err != nil, "%s: %v", dropped, err)
	}
}

// T11: zeros in a child hide what the parent holds, so the block stays.
func TestTrapT11CompactAsksTheParent(t *testing.T) {
	v := fixture.VHD{Size: 64 << 10, BlockSize: 4096, Type: 4, Parent: parent(), Writes: []fixture.Write{
		{Off: 0, Data: make([]byte, 512)}, {Off: 4096 + 512, Data: make([]byte, 1024)}, {Off: 8192, Data: make([]byte, 4096)},
	}}
	for _, tt := range []struct {
		name  string
		below func(off, n int64) (bool, error)
		gone  []int64
	}{
		{"nobody to ask", nil, nil},
		{"data below", func(int64, int64) (bool, error) { return false, nil }, nil},
		{"zeros below", func(int64, int64) (bool, error) { return true, nil }, []int64{0, 1, 2}},
		{"zeros below block 1", func(off, n int64) (bool, error) { return off >= 4096 && off+n <= 8192, nil }, []int64{1}},
		{"zeros below sector 9", func(off, n int64) (bool, error) { return off == 4608 && n == 512, nil }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := disk(v.Bytes())
			want := model(v, 0xee)
			for _, b := range tt.gone {
				copy(want[b*4096:], pattern(4096, 0xee))
			}
			edit(t, h, func(w ops.Writer) {
				o := everything()
				o.Below = tt.below
				require.EqualValues(t, len(tt.gone), compact(t, w, o).Dropped)
			})
			got, err := readLayer(mustOpen(t, image(t, h)), 0, 64<<10, 0xee)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
		})
	}
	h := disk(v.Bytes())
	edit(t, h, func(w ops.Writer) { // a guest hides more of the parent, meanwhile
		o := everything()
		o.Below = func(off, n int64) (bool, error) {
			if off == 0 {
				write(t, w, 1024, 0, 1)
			}
			return off == 0 && n == 512, nil
		}
		require.Zero(t, compact(t, w, o).Dropped)
	})
	failure := errors.New("the parent cannot be read")
	w := openWriter(t, disk(v.Bytes()))
	o := everything()
	o.Below = func(int64, int64) (bool, error) { return false, failure }
	_, err := w.(ops.Compacter).Compact(t.Context(), o)
	require.ErrorIs(t, err, failure)
	require.NoError(t, w.Close())
}

// Zeros within blocks that stay become holes of the host, and so does what is left
// of blocks that went.
func TestCompactTrims(t *testing.T) {
	v := fixture.VHD{Size: 1 << 20, BlockSize: 64 << 10, Writes: []fixture.Write{
		{Off: 40 << 10, Data: pattern(512, 1)}, {Off: 128 << 10, Data: pattern(64<<10, 2)}, {Off: 192 << 10, Data: make([]byte, 512)},
	}}
	for _, dry := range []bool{true, false} {
		h := disk(v.Bytes())
		w := openWriter(t, h)
		write(t, w, 0, 0, 80) // stored zeros
		write(t, w, 41<<10, 0, 46)
		write(t, w, 192<<10, 0, 128)
		require.NoError(t, w.Flush())
		used := h.Used()
		res := compact(t, w, ops.CompactOptions{Scan: true, Trim: true, Dry: dry})
		require.EqualValues(t, 1, res.Dropped)
		require.EqualValues(t, 0, res.Moved)
		require.EqualValues(t, 60<<10, res.Trimmed)
		require.Equal(t, res.Before, res.After)
		if !dry {
			require.LessOrEqual(t, h.Used(), used-(60<<10)-(64<<10))
		}
		require.NoError(t, w.Close())
		got, err := readLayer(mustOpen(t, image(t, h)), 0, v.Size, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(model(v, 0), got))
	}
}

// Parent paths that went behind the blocks come back, and the file can be cut.
func TestCompactLowersThePaths(t *testing.T) {
	v := sparse(4096, 0, 1, 2, 3, 4, 5)
	v.Type, v.Parent, v.Unaligned = 4, parent(), true
	h := disk(v.Bytes())
	edit(t, h, func(w ops.Writer) { require.NoError(t, w.(ops.Relinker).SetParent(otherParent())) })
	long := len(image(t, h))
	want := mustOpen(t, image(t, h)).Info().Parent
	edit(t, h, func(w ops.Writer) {
		require.NoError(t, w.(ops.Relinker).SetParent(otherParent()))
		require.NoError(t, w.(ops.Relinker).SetParent(otherParent()))
		compact(t, w, everything())
	})
	l := mustOpen(t, image(t, h))
	require.Equal(t, want, l.Info().Parent)
	require.Less(t, len(image(t, h)), long-3*4096)
	require.Empty(t, findings(t, l))
}

// A header that a crash left in its second place comes home.
func TestCompactBringsTheHeaderHome(t *testing.T) {
	h := disk(sparse(4096, 1, 3).Bytes())
	edit(t, h, func(w ops.Writer) {
		d := w.(*writer)
		d.mu.Lock()
		require.NoError(t, d.beginLocked())
		at, err := d.placeLocked(headerSize, 0)
		require.NoError(t, err)
		require.NoError(t, d.moveHeaderLocked(at, d.head, d.foot))
		d.mu.Unlock()
	})
	require.NotEqual(t, be64(512), image(t, h)[16:24])
	edit(t, h, func(w ops.Writer) { compact(t, w, everything()) })
	require.Equal(t, be64(512), image(t, h)[16:24])
	require.Empty(t, findings(t, mustOpen(t, image(t, h))))
}

// It stops between blocks, and goes on the next time.
func TestCompactCanBeStopped(t *testing.T) {
	v := sparse(4096, 0, 1, 2, 4, 3, 6, 5, 8, 7)
	whole := disk(v.Bytes())
	edit(t, whole, func(w ops.Writer) { compact(t, w, everything()) })
	short := len(image(t, whole))
	for n := 1; ; n++ {
		h := disk(v.Bytes())
		ctx, cancel := context.WithCancel(t.Context())
		w := openWriter(t, h)
		o, k := everything(), 0
		o.Progress = func(int64, int64) {
			if k++; k == n {
				cancel()
			}
		}
		_, err := w.(ops.Compacter).Compact(ctx, o)
		cancel()
		if k < n {
			require.NoError(t, err)
			require.NoError(t, w.Close())
			return
		}
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		require.NoError(t, w.Close())
		l := mustOpen(t, image(t, h))
		for _, a := range findings(t, l) {
			require.Equal(t, "vhd.leak", a.Name)
		}
		got, err := readLayer(l, 0, v.Size, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(model(v, 0), got))
		edit(t, h, func(w ops.Writer) { compact(t, w, everything()) })
		require.Len(t, image(t, h), short, "stopped after %d", n)
	}
}

// A fixed disk keeps its space.
func TestCompactFixed(t *testing.T) {
	v := fixture.VHD{Size: 1 << 20, Type: 2}
	h := disk(v.Bytes())
	edit(t, h, func(w ops.Writer) {
		require.Equal(t, ops.CompactResult{Before: 1<<20 + 512, After: 1<<20 + 512}, compact(t, w, everything()))
	})
	require.True(t, bytes.Equal(v.Bytes(), image(t, h)))
}
