package vhdx

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

const testImage = "disk.vhdx"

// place builds an image and puts it on a host in memory.
func place(t testing.TB, v fixture.VHDX) (*sim.Host, *fixture.VHDXImage) {
	t.Helper()
	m, err := v.Build()
	require.NoError(t, err)
	return hostWith(m.Sparse), m
}

func hostWith(m *fixture.Sparse) *sim.Host {
	h := sim.New()
	h.Put("/img/"+testImage, nil)
	b := h.Bytes("/img/" + testImage)
	b.Truncate(m.Size)
	for off, p := range m.Pages() {
		b.Write(off, p)
	}
	return h
}

func openHost(t testing.TB, h *sim.Host, a ops.Access) (*Disk, error) {
	t.Helper()
	f, err := h.Dir("/img").Open(testImage, a)
	require.NoError(t, err)
	l, err := Format.Open(f, ops.OpenOptions{Write: a&ops.Write != 0, Ext: ".vhdx", Cache: ops.NewCache(8 << 20)})
	if err != nil {
		return nil, err
	}
	if w, ok := l.(*Writer); ok {
		return w.Disk, nil
	}
	return l.(*Disk), nil
}

// openWriter opens an image for writing.
func openWriter(t testing.TB, h *sim.Host) *Writer {
	t.Helper()
	f, err := h.Dir("/img").Open(testImage, ops.Write)
	require.NoError(t, err)
	l, err := Format.Open(f, ops.OpenOptions{Write: true, Ext: ".vhdx", Cache: ops.NewCache(8 << 20)})
	require.NoError(t, err)
	return l.(*Writer)
}

// openRead opens an image for reading; nothing may be written to it.
func openRead(t testing.TB, v fixture.VHDX) *Disk {
	t.Helper()
	h, _ := place(t, v)
	h.Freeze()
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, d.Close())
		require.Zero(t, h.Refused(), "a reader wrote")
	})
	return d
}

// read is n bytes at off as a disk without parent shows them; absent bytes stay 0xee.
func read(t testing.TB, d *Disk, off, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = 0xee
	}
	for at := int64(0); at < n; {
		k, _, err := d.ReadRun(p[at:], off+at)
		require.NoError(t, err, "at %d", off+at)
		at += int64(k)
	}
	return p
}

// readErr is the error of reading one byte at off.
func readErr(d *Disk, off int64) error {
	_, _, err := d.ReadRun(make([]byte, 1), off)
	return err
}

func fill(n int, b byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = b
	}
	return p
}

// parentLocator is what Windows records of a parent.
func parentLocator() *fixture.Locator {
	return &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}"},
		{"parent_linkage2", "{00000000-0000-0000-0000-000000000000}"},
		{"relative_path", `.\parent.vhdx`},
		{"volume_path", `\\?\Volume{f9b1a4c6-0000-0000-0000-100000000000}\vm\parent.vhdx`},
		{"absolute_win32_path", `C:\vm\parent.vhdx`},
	}}
}
