package vfd_test

import (
	"errors"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/sim"
	"vhdfs/vfd"
)

func TestWriter(t *testing.T) {
	conformance.Writer(t, vfd.Format, conformance.Created(vfd.Format, ops.CreateSpec{}), conformance.NewDisk(1474560))
	t.Run("formatted", func(t *testing.T) {
		b := fat(func([]byte) {})
		want := conformance.NewDisk(int64(len(b)))
		want.Write(0, b)
		conformance.Writer(t, vfd.Format, func(t *testing.T) *sim.Host {
			h := conformance.Stored(vfd.Format, b)(t)
			f, err := h.Dir("/vms").Open("disk.vfd", ops.Write)
			require.NoError(t, err)
			require.NoError(t, f.Punch(64<<10, 1<<20)) // zeros either way; the suite fills the host
			require.NoError(t, f.Close())
			return h
		}, want)
	})
}

func openWriter(t *testing.T) (*sim.Host, ops.Writer) {
	t.Helper()
	h := sim.New()
	h.Put("/d/f.vfd", fat(func([]byte) {}))
	f, err := h.Dir("/d").Open("f.vfd", ops.Write)
	require.NoError(t, err)
	l, err := vfd.Format.Open(f, ops.OpenOptions{Ext: ".vfd", Write: true})
	require.NoError(t, err)
	h.Record()
	return h, l.(ops.Writer)
}

// ops of the events since the writer was opened.
func kinds(h *sim.Host) []sim.Op {
	var list []sim.Op
	for _, e := range h.Events() {
		list = append(list, e.Op)
	}
	return list
}

// A flush ends what was written before with a sync (contract C1), and so does
// closing; without a write neither touches the file.
func TestSyncs(t *testing.T) {
	sector := make([]byte, 512)
	h, w := openWriter(t)
	_, err := w.WriteAt(sector, 512)
	require.NoError(t, err)
	require.NoError(t, w.Flush())
	require.Equal(t, []sim.Op{sim.OpWrite, sim.OpSync}, kinds(h))
	require.NoError(t, w.Zero(1024, 512, false))
	require.NoError(t, w.Close())
	require.Equal(t, []sim.Op{sim.OpWrite, sim.OpSync, sim.OpWrite, sim.OpSync}, kinds(h))

	h, w = openWriter(t)
	require.NoError(t, w.Close())
	require.Empty(t, h.Events())

	h, w = openWriter(t)
	require.NoError(t, w.Zero(0, 512, true))
	require.NoError(t, w.Close())
	require.Equal(t, []sim.Op{sim.OpPunch, sim.OpSync}, kinds(h))
}

// Where the host cannot punch, unmapped sectors get zeros written.
func TestZeroWithoutPunch(t *testing.T) {
	h, w := openWriter(t)
	h.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpPunch {
			return errors.ErrUnsupported
		}
		return nil
	})
	require.NoError(t, w.Zero(0, 1474560, true))
	require.NoError(t, w.Close())
	b, err := h.ReadFile("/d/f.vfd")
	require.NoError(t, err)
	require.Equal(t, make([]byte, 1474560), b)
}

// What the host refuses comes back as it is, from every call that changes.
func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name string
		op   sim.Op
		call func(w ops.Writer) error
	}{
		{"write", sim.OpWrite, func(w ops.Writer) error { _, err := w.WriteAt(make([]byte, 512), 0); return err }},
		{"zero", sim.OpWrite, func(w ops.Writer) error { return w.Zero(0, 512, false) }},
		{"unmap", sim.OpPunch, func(w ops.Writer) error { return w.Zero(0, 512, true) }},
		{"flush", sim.OpSync, func(w ops.Writer) error { return w.Flush() }},
		{"close", sim.OpClose, func(w ops.Writer) error { return w.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, w := openWriter(t)
			h.SetFault(func(c sim.Call) error {
				if c.Op == tt.op {
					return syscall.EIO
				}
				return nil
			})
			require.ErrorIs(t, tt.call(w), syscall.EIO)
		})
	}
}

// Closing after a failed sync does not sync again: it would succeed, and say
// nothing about what was lost.
func TestCloseOfPoisoned(t *testing.T) {
	h, w := openWriter(t)
	syncs := 0
	h.SetFault(func(c sim.Call) error {
		if c.Op != sim.OpSync {
			return nil
		}
		syncs++
		return syscall.EIO
	})
	_, err := w.WriteAt(make([]byte, 512), 0)
	require.NoError(t, err)
	require.ErrorIs(t, w.Flush(), syscall.EIO)
	require.NoError(t, w.Close())
	require.Equal(t, 1, syncs)
}

// The host tells of a failed sync once. A flush that waits for a failing one
// must not be told that all is well.
func TestFlushBesideFailingFlush(t *testing.T) {
	h, w := openWriter(t)
	_, err := w.WriteAt(make([]byte, 512), 0)
	require.NoError(t, err)
	inSync, goOn := make(chan struct{}), make(chan struct{})
	h.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpSync && c.N == 1 {
			close(inSync)
			<-goOn
			return syscall.EIO
		}
		return nil
	})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- w.Flush() }()
	<-inSync
	started := make(chan struct{})
	go func() { close(started); second <- w.Flush() }()
	<-started
	for range 1000 { // the second flush gets every chance to pass the first
		runtime.Gosched()
	}
	require.Empty(t, second)
	close(goOn)
	require.ErrorIs(t, <-first, syscall.EIO)
	require.ErrorIs(t, <-second, ops.ErrPoisoned)
}
