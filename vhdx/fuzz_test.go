package vhdx

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// templates are the images that fuzzing damages: every type, clean and dirty.
var templates = sync.OnceValue(func() []*fixture.VHDXImage {
	var ms []*fixture.VHDXImage
	w := []fixture.Write{{Off: 512, Data: fill(4096, 1)}, {Off: 3 * mib, Data: fill(512, 2)}}
	for _, v := range []fixture.VHDX{
		{Writes: w, BlockSize: 1 << 20},
		{Writes: w, Fixed: true},
		{Writes: w, Parent: parentLocator(), LogicalSector: 4096, Size: 16 * mib},
		{Writes: w[:1], BlockSize: 256 << 20},
		{Writes: w, Log: &fixture.Log{Tables: true}},
		{Writes: w, Log: &fixture.Log{Garbage: true, Entries: []fixture.LogEntry{
			data(shown, fixture.Descriptor{Off: 4 * mib, Zero: 8192}), data(), data(hidden),
		}}},
		{Writes: w, Parent: parentLocator(), Log: &fixture.Log{Tables: true, Entries: []fixture.LogEntry{data()}}},
	} {
		if v.Size == 0 {
			v.Size = 16*mib + 512
		}
		if v.LogicalSector == 4096 {
			v.Writes = []fixture.Write{{Off: 4096, Data: fill(8192, 1)}}
		}
		m, err := v.Build()
		if err != nil {
			panic(err)
		}
		ms = append(ms, m)
	}
	return ms
})

// patched is a template with up to 16 patches: each is 2 bytes of place in a
// window, a byte whose low 3 bits say how many bytes follow, and these. Bit 7
// leaves the checksum wrong.
func patched(m *fixture.VHDXImage, window, size int64, patch []byte) *fixture.VHDXImage {
	c := *m
	c.Sparse = m.Clone()
	for range 16 {
		if len(patch) < 4 {
			break
		}
		off := window + int64(le.Uint16(patch))%size
		n := min(1+int(patch[2]&7), len(patch)-3)
		c.Write(off, patch[3:3+n])
		if patch[2]&0x80 == 0 {
			c.Repair(off)
		}
		patch = patch[3+n:]
	}
	return &c
}

// walk opens and reads an image as far as it goes. Whatever it holds: no panic,
// nothing written, runs that tile the disk, errors of a class that has a meaning.
func walk(t *testing.T, m *fixture.VHDXImage) {
	h := hostWith(t, m.Sparse)
	h.Freeze()
	d, err := openHost(t, h, ops.Read)
	if err == nil {
		walkDisk(t, d)
		require.NoError(t, d.Close())
	} else {
		require.True(t, errors.Is(err, ops.ErrCorrupt), "%v", err)
	}
	require.Zero(t, h.Refused())
}

func walkDisk(t *testing.T, d *Disk) {
	p := make([]byte, 8192)
	steps := 0
	for off := int64(0); off < d.Size() && steps < 200; steps++ {
		n, kind, err := d.ReadRun(p, off)
		x, xerr := d.Extent(off, d.Size())
		if err != nil {
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.Zero(t, n)
			off += int64(d.metadata.blockSize) / 3
			continue
		}
		require.NoError(t, xerr)
		require.Equal(t, kind, x.Kind)
		require.Positive(t, x.Len)
		require.LessOrEqual(t, off+x.Len, d.Size())
		if x.Kind == ops.Data {
			require.GreaterOrEqual(t, x.Pos, mib)
			require.LessOrEqual(t, x.Pos+x.Len, d.fileSize)
		}
		off += x.Len
	}
	count := 0
	err := d.Check(context.Background(), func(ops.Anomaly) { count++ })
	if err != nil {
		require.ErrorIs(t, err, ops.ErrCorrupt)
	}
	require.LessOrEqual(t, int64(count), 3*d.geometry.entries+3)
	_, _, err = d.ReadRun(p, d.Size())
	require.ErrorIs(t, err, io.EOF)
}

// fuzzWindow fuzzes one structure of every template.
func fuzzWindow(f *testing.F, window func(*fixture.VHDXImage) (off, n int64)) {
	for i := range templates() {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{8, 0, 3, 1, 2, 3, 4, 72, 0, 7, 0, 0, 0x10, 0, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, patch []byte) {
		m := templates()[int(which)%len(templates())]
		off, n := window(m)
		walk(t, patched(m, off, n, patch))
	})
}

func FuzzHeader(f *testing.F) {
	fuzzWindow(f, func(*fixture.VHDXImage) (int64, int64) { return fixture.VHDXHeader2, 128 })
}

func FuzzRegion(f *testing.F) {
	fuzzWindow(f, func(*fixture.VHDXImage) (int64, int64) { return fixture.VHDXRegion1, 128 })
}

func FuzzMetadata(f *testing.F) {
	fuzzWindow(f, func(m *fixture.VHDXImage) (int64, int64) { return m.MetaOff, 256 })
}

func FuzzItems(f *testing.F) {
	fuzzWindow(f, func(m *fixture.VHDXImage) (int64, int64) { return m.MetaOff + 64*kib, 64 })
}

func FuzzBAT(f *testing.F) {
	fuzzWindow(f, func(m *fixture.VHDXImage) (int64, int64) { return m.BATOff, 2049 * 8 })
}

// FuzzLogFind damages entries without and with right checksums.
func FuzzLogFind(f *testing.F) {
	fuzzWindow(f, func(m *fixture.VHDXImage) (int64, int64) { return m.LogOff, 4 * pageSize })
}

// FuzzLogReplay damages the descriptors of a valid sequence.
func FuzzLogReplay(f *testing.F) {
	fuzzWindow(f, func(m *fixture.VHDXImage) (int64, int64) { return m.LogOff + 48, 16 + 32*4 })
}

// FuzzImageRead damages any 64 KiB.
func FuzzImageRead(f *testing.F) {
	for i := range templates() {
		f.Add(uint8(i), uint8(1), []byte{8, 0, 3, 1, 2, 3, 4})
	}
	f.Fuzz(func(t *testing.T, which, window uint8, patch []byte) {
		walk(t, patched(templates()[int(which)%len(templates())], int64(window)*64*kib, 64*kib, patch))
	})
}

// FuzzLocator takes locators whole: what decodes, encodes to the same pairs.
func FuzzLocator(f *testing.F) {
	f.Add(parentLocator().Bytes())
	f.Add((&fixture.Locator{}).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLocator(b)
		if err != nil {
			require.ErrorIs(t, err, ops.ErrCorrupt)
			return
		}
		again, err := decodeLocator(l.encode())
		require.NoError(t, err)
		require.Equal(t, l, again)
		require.True(t, bytes.Equal(l.encode(), again.encode()))
	})
}

// FuzzImageWrite writes to damaged images: what a request did not refuse reads
// back, before and after the close, and the tables stay sound.
func FuzzImageWrite(f *testing.F) {
	for i := range templates() {
		f.Add(uint8(i), uint16(48), []byte{8, 0, 3, 1, 2, 3, 4}, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	}
	f.Fuzz(func(t *testing.T, which uint8, window uint16, patch, script []byte) {
		m := templates()[int(which)%len(templates())]
		h := hostWith(t, patched(m, int64(window%96)*64*kib, 64*kib, patch).Sparse)
		file, err := h.Dir("/img").Open(testImage, ops.Write)
		require.NoError(t, err)
		l, err := Format.Open(file, ops.OpenOptions{Write: true, Cache: ops.NewCache(1 << 20)})
		if err != nil {
			return
		}
		w := l.(*Writer)
		model := writeScript(t, w, script)
		require.NoError(t, w.Close())
		d, err := openHost(t, h, ops.Read)
		require.NoError(t, err)
		for off, b := range model {
			require.Equal(t, fill(512, b), read(t, d, off, 512))
		}
		require.NoError(t, d.Close())
	})
}

// writeScript makes up to 20 changes, three bytes each, and answers by sector
// what was stored.
func writeScript(t *testing.T, w *Writer, script []byte) map[int64]byte {
	model := map[int64]byte{}
	sector := w.geometry.sector
	for range 20 {
		if len(script) < 3 {
			break
		}
		off := int64(le.Uint16(script)) * sector % w.Size() / sector * sector
		n, b := sector, script[2]
		var err error
		switch script[2] % 4 {
		case 0:
			err, b = w.Zero(off, n, script[2]&8 != 0), 0
		case 1:
			require.NoError(t, w.Flush())
			fallthrough
		default:
			_, err = w.WriteAt(fill(int(n), b), off)
		}
		if err == nil {
			for at := off; at < off+n; at += 512 {
				model[at] = b
			}
		} else {
			require.True(t, errors.Is(err, ops.ErrCorrupt), "%v", err)
		}
		script = script[3:]
	}
	return model
}
