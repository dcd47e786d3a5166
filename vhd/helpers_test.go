package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// disk puts an image on a host in memory.
func disk(image []byte) *sim.Host {
	h := sim.New()
	h.Put("/d.vhd", image)
	return h
}

func openFile(t testing.TB, h *sim.Host, a ops.Access) ops.File {
	t.Helper()
	f, err := h.Dir("/").Open("d.vhd", a)
	require.NoError(t, err)
	return f
}

// tryOpen opens /d.vhd for reading; nothing may be written by that.
func tryOpen(t testing.TB, h *sim.Host) (ops.Layer, error) {
	t.Helper()
	h.Freeze()
	l, err := Open(openFile(t, h, ops.Read), ops.OpenOptions{Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
	require.Zero(t, h.Refused(), "opening for reading wrote")
	if err == nil {
		t.Cleanup(func() { require.NoError(t, l.Close()) })
	}
	return l, err
}

func mustOpen(t testing.TB, image []byte) ops.Layer {
	t.Helper()
	l, err := tryOpen(t, disk(image))
	require.NoError(t, err)
	return l
}

// readLayer is what a layer holds of [off, off+n), with fill where it is absent.
func readLayer(l ops.Layer, off, n int64, fill byte) ([]byte, error) {
	out := bytes.Repeat([]byte{fill}, int(n))
	for at := int64(0); at < n; {
		k, kind, err := l.ReadRun(out[at:], off+at)
		if errors.Is(err, io.EOF) {
			return out[:at], nil
		}
		if err != nil {
			return nil, err
		}
		if kind == ops.Zero {
			clear(out[at : at+int64(k)])
		}
		at += int64(k)
	}
	return out, nil
}

// model is what a guest sees of v: fill where nothing was written.
func model(v fixture.VHD, fill byte) []byte {
	out := bytes.Repeat([]byte{fill}, int(v.Size))
	bs := int64(v.BlockSize)
	if bs == 0 {
		bs = 2 << 20
	}
	for _, w := range v.Writes {
		lo, hi := w.Off, w.Off+int64(len(w.Data))
		if v.Type == 4 { // whole sectors are taken from this layer
			clear(out[lo/512*512 : min(roundUp(hi, 512), v.Size)])
		} else if v.Type == 3 || v.Type == 0 {
			clear(out[lo/bs*bs : min(roundUp(hi, bs), v.Size)])
		}
	}
	for _, w := range v.Writes {
		copy(out[w.Off:], w.Data)
	}
	return out
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// names lists the names of anomalies.
func names(as []ops.Anomaly) []string {
	var out []string
	for _, a := range as {
		out = append(out, a.Name)
	}
	return out
}

// someWrites touch three blocks of 2 MiB, across borders and inside sectors.
func someWrites() []fixture.Write {
	return []fixture.Write{
		{Off: 0, Data: bytes.Repeat([]byte{1}, 700)},
		{Off: 2<<20 - 300, Data: bytes.Repeat([]byte{2}, 1000)},
		{Off: 6<<20 + 5*512, Data: bytes.Repeat([]byte{3}, 3*512)},
	}
}

// parent is a sound record of a parent.
func parent() *fixture.VHDParent {
	return &fixture.VHDParent{
		UUID: [16]byte{9, 8, 7, 6, 5, 4, 3, 2, 1}, Timestamp: 1000, Name: "p.vhd",
		Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\p.vhd`}, {Code: "W2ku", Path: `C:\vm\p.vhd`}},
	}
}
