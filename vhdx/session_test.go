package vhdx

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

func image(t testing.TB, h *sim.Host) []byte {
	t.Helper()
	b, err := h.ReadFile("/img/" + testImage)
	require.NoError(t, err)
	return b
}

func write(t testing.TB, w *Writer, off int64, p []byte) {
	t.Helper()
	n, err := w.WriteAt(p, off)
	require.NoError(t, err)
	require.Equal(t, len(p), n)
}

// closed closes a writer, and checks and gives back the image as it is then.
func closed(t testing.TB, h *sim.Host, w *Writer) *Disk {
	t.Helper()
	require.NoError(t, w.Close())
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	require.Equal(t, ops.LogClean, d.Info().Log)
	require.Empty(t, check(t, d))
	return d
}

// Ids stay put (the promise of the same name): opening, reading and what changes
// nothing leave every byte; the first change changes both ids, once.
func TestIDsStayPut(t *testing.T) {
	h, _ := place(t, fixture.VHDX{Size: 16 * mib, Writes: []fixture.Write{{Off: 0, Data: fill(512, 1)}}})
	before := image(t, h)
	w := openWriter(t, h)
	read(t, w.Disk, 0, 4*mib)
	require.NoError(t, w.Zero(4*mib, 4*mib, true), "zeros where there are none but zeros")
	require.NoError(t, w.Flush())
	write(t, w, 0, nil)
	require.NoError(t, w.Close())
	require.True(t, bytes.Equal(before, image(t, h)))
	require.Zero(t, h.SyncLabels()["vhdx.payload"])

	w = openWriter(t, h)
	file, link := w.headers.current.fileWrite, w.Info().LinkID
	write(t, w, 0, fill(512, 2))
	firstFile, firstLink := w.headers.current.fileWrite, w.Info().LinkID
	require.NotEqual(t, file, firstFile)
	require.NotEqual(t, link, firstLink)
	write(t, w, 4*mib, fill(512, 2))
	require.NoError(t, w.Flush())
	d := closed(t, h, w)
	require.Equal(t, firstLink, d.Info().LinkID)
	require.Equal(t, firstFile, d.headers.current.fileWrite)
}

// T30: a header is one write of 4 KiB, never to both slots without a sync between,
// with the number grown by one and a right checksum each time.
func TestTrapT30HeaderWrites(t *testing.T) {
	h, _ := place(t, fixture.VHDX{Size: 16 * mib})
	h.Record()
	for range 3 {
		w := openWriter(t, h)
		write(t, w, 0, fill(512, 1))
		require.NoError(t, w.Close())
	}
	seq, unsynced, last := uint64(8), 0, headerOffset[1]
	for _, e := range h.Events() {
		switch {
		case e.Op == sim.OpSync:
			unsynced = 0
		case e.Op == sim.OpWrite && e.Off < mib:
			unsynced++
			require.Equal(t, 1, unsynced)
			require.Equal(t, int64(4096), e.Len)
			require.Equal(t, headerOffset[0]+headerOffset[1]-last, e.Off, "slots take turns")
			got, err := decodeHeader(e.Data)
			require.NoError(t, err)
			require.Equal(t, seq+1, got.seq)
			seq, last = got.seq, e.Off
		}
	}
	require.Equal(t, uint64(8+3*4), seq)
	var raw [2][]byte
	b := image(t, h)
	for i, off := range headerOffset {
		raw[i] = b[off : off+4096]
		got, err := decodeHeader(raw[i])
		require.NoError(t, err)
		require.True(t, got.log.IsZero(), "a clean close leaves both without a log")
	}
}

// A replay changes FileWriteGuid before anything else and the content not at all;
// it waits for the first change.
func TestReplayWaitsForTheFirstChange(t *testing.T) {
	v := logged(&fixture.Log{Entries: []fixture.LogEntry{data(shown, fixture.Descriptor{Off: 4*mib + 4096, Zero: 8192})}})
	h, _ := place(t, v)
	before := image(t, h)
	w := openWriter(t, h)
	require.Equal(t, []byte{0x22}, read(t, w.Disk, 2*mib, 1))
	require.NoError(t, w.Flush())
	require.NoError(t, w.Close())
	require.True(t, bytes.Equal(before, image(t, h)))

	w = openWriter(t, h)
	h.Record()
	write(t, w, 8*mib, fill(512, 0x33))
	require.Equal(t, ops.LogClean, w.Info().Log)
	require.Empty(t, w.Info().Anomalies)
	events := h.Events()
	require.Equal(t, "vhdx.header.found", events[0].Label)
	require.Equal(t, headerOffset[0], events[1].Off)
	require.Equal(t, "vhdx.header.file", events[2].Label)
	d := closed(t, h, w)
	require.Equal(t, []byte{0x22}, read(t, d, 2*mib, 1))
	require.Equal(t, append(fill(4096, 0x11), make([]byte, 8192)...), read(t, d, 0, 12288))
	require.Equal(t, fill(512, 0x33), read(t, d, 8*mib, 512))
}

// Every image whose tables cannot be trusted is refused at the first change, with
// nothing written (H11, H20).
func TestWriteRefusesBrokenTables(t *testing.T) {
	two := []fixture.Write{{Off: 0, Data: fill(512, 1)}, {Off: 2 * mib, Data: fill(512, 2)}}
	for _, tt := range []struct {
		name  string
		image fixture.VHDX
		err   string
	}{
		{"same space twice", fixture.VHDX{Entries: map[int64]uint64{1: uint64(4*mib) | 6}}, "bat entry 1: block at 0x400000 overlaps something else"},
		{"half of a block's space", fixture.VHDX{Entries: map[int64]uint64{3: uint64(5*mib) | 6}}, "bat entry 3: block at 0x500000 overlaps something else"},
		{"on a bitmap", fixture.VHDX{Parent: parentLocator(), Entries: map[int64]uint64{3: uint64(4*mib) | 6}}, "bat entry 3: block at 0x400000 overlaps something else"},
		{"on the log", fixture.VHDX{Entries: map[int64]uint64{3: uint64(mib) | 6}}, "bat entry 3: block at 0x100000 overlaps the log"},
		{"state 5", fixture.VHDX{Entries: map[int64]uint64{3: 5}}, "bat entry 3: state 5 is reserved"},
		{"past the end", fixture.VHDX{Entries: map[int64]uint64{3: uint64(100*mib) | 6}}, "bat entry 3: 0x200000 bytes at 0x6400000 past end of file"},
		{"no bitmap", fixture.VHDX{Parent: parentLocator(), Entries: map[int64]uint64{2048: 0}}, "bat entry 2048: 0x0 is not a present sector bitmap"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.image.Size, tt.image.Writes = 16*mib, two
			h, _ := place(t, tt.image)
			before := image(t, h)
			w := openWriter(t, h)
			for _, err := range []error{w.Zero(0, 512, false), w.Zero(2*mib, 512, true)} {
				require.ErrorIs(t, err, ops.ErrCorrupt)
			}
			_, err := w.WriteAt(fill(512, 9), 0)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, tt.err)
			require.NoError(t, w.Flush())
			require.NoError(t, w.Close())
			require.True(t, bytes.Equal(before, image(t, h)))
		})
	}
}

// idsAfter judges a crash state: content that differs from the start goes with
// another DataWriteGuid, bytes outside the headers with another FileWriteGuid.
func idsAfter(t *testing.T, s *crash.Subject, base, state *sim.Host) error {
	was, now := image(t, base), image(t, state)
	l0, err := s.Open(base, ops.Read)
	require.NoError(t, err)
	l1, err := s.Open(state, ops.Read)
	require.NoError(t, err)
	defer func() { require.NoError(t, errors.Join(l0.Close(), l1.Close())) }()
	d0, d1 := l0.(*Disk), l1.(*Disk)
	if d0.headers.current.dataWrite == d1.headers.current.dataWrite && !bytes.Equal(read(t, d0, 0, d0.Size()), read(t, d1, 0, d1.Size())) {
		return errors.New("content changed under the same DataWriteGuid")
	}
	if d0.headers.current.fileWrite == d1.headers.current.fileWrite && !bytes.Equal(was[192*kib:], now[192*kib:min(len(now), len(was))]) {
		return errors.New("file changed under the same FileWriteGuid")
	}
	return nil
}

// A header with new ids is durable before what they announce; without either
// sync some state shows it.
func TestIDsChangeFirst(t *testing.T) {
	v := fixture.VHDX{Size: 2*mib + 512, BlockSize: 1 << 20, Writes: []fixture.Write{{Off: 0, Data: fill(8192, 1)}}, Log: &fixture.Log{Tables: true}}
	run := func(dropped ...string) error {
		h, _ := place(t, v)
		s := &crash.Subject{Format: Format, Path: "/img/" + testImage}
		r, _, err := s.Record(&crash.Prepared{Host: h}, crash.Sequence{crash.Steps[1], crash.Steps[6], crash.Steps[8]}, dropped...)
		require.NoError(t, err)
		var found error
		require.NoError(t, r.Each(1, func(state *crash.State) error {
			after, err := state.Host()
			require.NoError(t, err)
			found = errors.Join(found, idsAfter(t, s, h, after))
			return nil
		}))
		return found
	}
	require.NoError(t, run())
	require.ErrorContains(t, run("vhdx.header.file"), "same FileWriteGuid")
	require.ErrorContains(t, run("vhdx.header.log"), "same DataWriteGuid")
}
