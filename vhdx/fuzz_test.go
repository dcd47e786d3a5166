package vhdx

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"sync"
	"testing"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// template is an image that fuzzing damages: on a host that is cloned, never
// changed, and as what it was built from.
type template struct {
	*fixture.VHDXImage
	host *sim.Host
}

// templates are of every type, clean and dirty.
var templates = sync.OnceValue(func() []template {
	var ts []template
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
		ts = append(ts, template{m, hostWith(m.Sparse)})
	}
	return ts
})

// patched is a template with up to 16 patches: each is 2 bytes of place in a
// window, a byte whose low 3 bits say how many bytes follow, and these. Bit 7
// leaves the checksum wrong.
func (t template) patched(window, size int64, patch []byte) *sim.Host {
	h := t.host.Clone()
	b := h.Bytes("/img/" + testImage)
	for range 16 {
		if len(patch) < 4 {
			break
		}
		off := window + int64(le.Uint16(patch))%size
		n := min(1+int(patch[2]&7), len(patch)-3)
		b.Write(off, patch[3:3+n])
		if patch[2]&0x80 == 0 {
			t.RepairIn(b, off)
		}
		patch = patch[3+n:]
	}
	return h
}

// must stops at the first error of a fuzz run; require is too slow for that.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustCorrupt(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ops.ErrCorrupt) {
		t.Fatalf("%v: not a class that was expected", err)
	}
}

// walk opens and reads an image as far as it goes. Whatever it holds: no panic,
// nothing written, runs that tile the disk, errors of a class that has a meaning.
func walk(t *testing.T, h *sim.Host) {
	h.Freeze()
	d, err := openHost(t, h, ops.Read)
	if err == nil {
		walkDisk(t, d)
		must(t, d.Close())
	} else {
		mustCorrupt(t, err)
	}
	if n := h.Refused(); n > 0 {
		t.Fatalf("%d changes were asked for", n)
	}
}

func walkDisk(t *testing.T, d *Disk) {
	p := make([]byte, 8192)
	steps := 0
	for off := int64(0); off < d.Size() && steps < 200; steps++ {
		n, kind, err := d.ReadRun(p, off)
		x, xerr := d.Extent(off, d.Size())
		if err != nil {
			mustCorrupt(t, err)
			if n != 0 {
				t.Fatalf("%d bytes read with error %v", n, err)
			}
			off += int64(d.metadata.blockSize) / 3
			continue
		}
		must(t, xerr)
		if x.Kind != kind || x.Len <= 0 || x.Len > d.Size()-off {
			t.Fatalf("at %#x of %#x: extent %+v, read a run of %v", off, d.Size(), x, kind)
		}
		if x.Kind == ops.Data && (x.Pos < mib || x.Pos+x.Len > d.fileSize) {
			t.Fatalf("at %#x: extent %+v in a file of %#x", off, x, d.fileSize)
		}
		off += x.Len
	}
	count := int64(0)
	if err := d.Check(context.Background(), func(ops.Anomaly) { count++ }); err != nil {
		mustCorrupt(t, err)
	}
	if count > 3*d.geometry.entries+3 {
		t.Fatalf("%d anomalies in %d entries", count, d.geometry.entries)
	}
	if _, _, err := d.ReadRun(p, d.Size()); !errors.Is(err, io.EOF) {
		t.Fatalf("read at the end: %v", err)
	}
}

// fuzzWindow fuzzes one structure of every template.
func fuzzWindow(f *testing.F, window func(template) (off, n int64)) {
	for i := range templates() {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{8, 0, 3, 1, 2, 3, 4, 72, 0, 7, 0, 0, 0x10, 0, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, patch []byte) {
		m := templates()[int(which)%len(templates())]
		off, n := window(m)
		walk(t, m.patched(off, n, patch))
	})
}

func FuzzHeader(f *testing.F) {
	fuzzWindow(f, func(template) (int64, int64) { return fixture.VHDXHeader2, 128 })
}

func FuzzRegion(f *testing.F) {
	fuzzWindow(f, func(template) (int64, int64) { return fixture.VHDXRegion1, 128 })
}

func FuzzMetadata(f *testing.F) {
	fuzzWindow(f, func(m template) (int64, int64) { return m.MetaOff, 256 })
}

func FuzzItems(f *testing.F) {
	fuzzWindow(f, func(m template) (int64, int64) { return m.MetaOff + 64*kib, 64 })
}

func FuzzBAT(f *testing.F) {
	fuzzWindow(f, func(m template) (int64, int64) { return m.BATOff, 2049 * 8 })
}

// FuzzLogFind damages entries without and with right checksums.
func FuzzLogFind(f *testing.F) {
	fuzzWindow(f, func(m template) (int64, int64) { return m.LogOff, 4 * pageSize })
}

// FuzzLogReplay damages the descriptors of a valid sequence.
func FuzzLogReplay(f *testing.F) {
	fuzzWindow(f, func(m template) (int64, int64) { return m.LogOff + 48, 16 + 32*4 })
}

// FuzzImageRead damages any 64 KiB.
func FuzzImageRead(f *testing.F) {
	for i := range templates() {
		f.Add(uint8(i), uint8(1), []byte{8, 0, 3, 1, 2, 3, 4})
	}
	f.Fuzz(func(t *testing.T, which, window uint8, patch []byte) {
		walk(t, templates()[int(which)%len(templates())].patched(int64(window)*64*kib, 64*kib, patch))
	})
}

// FuzzLocator takes locators whole: what decodes, encodes to the same pairs.
func FuzzLocator(f *testing.F) {
	f.Add(parentLocator().Bytes())
	f.Add((&fixture.Locator{}).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLocator(b)
		if err != nil {
			mustCorrupt(t, err)
			return
		}
		again, err := decodeLocator(l.encode())
		must(t, err)
		if !reflect.DeepEqual(l, again) || !bytes.Equal(l.encode(), again.encode()) {
			t.Fatalf("%v became %v", l, again)
		}
	})
}

// FuzzImageWrite writes to damaged images: what a request did not refuse reads
// back, before and after the close, and the tables stay sound.
func FuzzImageWrite(f *testing.F) {
	for i := range templates() {
		f.Add(uint8(i), uint16(48), []byte{8, 0, 3, 1, 2, 3, 4}, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	}
	f.Fuzz(func(t *testing.T, which uint8, window uint16, patch, script []byte) {
		h := templates()[int(which)%len(templates())].patched(int64(window%96)*64*kib, 64*kib, patch)
		file, err := h.Dir("/img").Open(testImage, ops.Write)
		must(t, err)
		l, err := Format.Open(file, ops.OpenOptions{Write: true, Cache: ops.NewCache(1 << 20)})
		if err != nil {
			return
		}
		w := l.(*Writer)
		model := writeScript(t, w, script)
		must(t, w.Close())
		d, err := openHost(t, h, ops.Read)
		must(t, err)
		for off, b := range model {
			if got := read(t, d, off, 512); !bytes.Equal(got, fill(512, b)) {
				t.Fatalf("sector at %#x reads as %x, was %x", off, got[:4], b)
			}
		}
		must(t, d.Close())
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
			must(t, w.Flush())
			fallthrough
		default:
			_, err = w.WriteAt(fill(int(n), b), off)
		}
		if err == nil {
			for at := off; at < off+n; at += 512 {
				model[at] = b
			}
		} else {
			mustCorrupt(t, err)
		}
		script = script[3:]
	}
	return model
}
