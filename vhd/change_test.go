package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// changeTest is one method of ops/change.go on one image, in the hands of a guest.
type changeTest struct {
	image  fixture.VHD
	change func(g *crash.Guest) error
	// twice is the same again, after a failure.
	twice func(w ops.Writer) error
	// also must hold in each state; nil: nothing.
	also func(image []byte) error
	// zeroParent says that the parent is zeros: absent sectors are no others.
	zeroParent bool
	// changes says that the image describes itself otherwise afterwards.
	changes bool
}

// describe is what must be as it was or as it was asked to become: all that a
// file says of itself but what is odd about it.
func describe(l ops.Layer) string {
	i := l.Info()
	s := fmt.Sprintf("%d bytes, %s, blocks of %d, id %s", l.Size(), i.Type, i.BlockSize, i.LinkID)
	if i.Parent != nil {
		s += fmt.Sprintf(", parent %v %v %v", i.Parent.IDs, i.Parent.Timestamp.Unix(), i.Parent.Paths)
	}
	return s
}

// lookAt opens the image of a host for reading and describes it.
func lookAt(s *crash.Subject, h *sim.Host) (string, error) {
	l, err := s.Open(h, ops.Read)
	if err != nil {
		return "", err
	}
	return describe(l), l.Close()
}

// prepare makes the image of a test with what its fixture holds as history.
func (c changeTest) prepare(t testing.TB) (*crash.Subject, *crash.Prepared) {
	t.Helper()
	s, p := crashSubject(t, c.image)
	if c.zeroParent {
		s.Differencing, p.History = false, crash.NewHistory(false)
	}
	for _, w := range c.image.Writes {
		p.History.Hold(w.Off, w.Data)
	}
	return s, p
}

// record runs the change and gives its recording; acknowledged is the number of
// events after which it has answered nil.
func (c changeTest) record(t testing.TB, s *crash.Subject, p *crash.Prepared, dropped ...string) (r *crash.Recording, acknowledged int) {
	t.Helper()
	h := p.Host.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	h.Record()
	g, err := crash.NewGuest(s, h)
	require.NoError(t, err)
	require.NoError(t, c.change(g))
	acknowledged = len(h.Events())
	h.Ack("changed", nil)
	require.NoError(t, g.Close())
	return &crash.Recording{Base: p.Host.Clone(), Events: h.Events()}, acknowledged
}

// states cuts the power everywhere in the change: each state opens, checks clean,
// is repaired by a first write, reads as the guest wrote, and says of itself what
// it said before or what was asked for, the latter once it was answered.
func (c changeTest) states(t testing.TB, dropped ...string) (n int, err error) {
	t.Helper()
	s, p := c.prepare(t)
	before, err := lookAt(s, p.Host)
	require.NoError(t, err)
	r, acknowledged := c.record(t, s, p, dropped...)
	after := ""
	err = r.Each(1, func(state *crash.State) error {
		if state.At == len(r.Events) && after == "" { // the first state of the last epoch has nothing of it
			h := p.Host.Clone()
			for _, e := range r.Events {
				if err := h.Apply(e); err != nil {
					return err
				}
			}
			after, err = lookAt(s, h)
		}
		return err
	})
	require.NoError(t, err)
	require.Equal(t, c.changes, before != after, after)
	history, seen := p.History.Clone(), 0
	return n, r.Each(1, func(state *crash.State) error {
		for ; seen < state.At; seen++ {
			history.Note(r.Events[seen])
		}
		n++
		h, err := state.Host()
		if err != nil {
			return err
		}
		var first string
		s.Also = func(h *sim.Host, l ops.Layer, _ *crash.View) error {
			if c.also != nil {
				b, err := h.ReadFile(s.Path)
				if err == nil {
					err = c.also(b)
				}
				if err != nil {
					return err
				}
			}
			now := describe(l)
			switch {
			case now != after && (now != before || state.At > acknowledged):
				return fmt.Errorf("it says %s, not %s", now, after)
			case first != "" && now != first:
				return fmt.Errorf("it says %s, said %s before the first write", now, first)
			}
			first = now
			return nil
		}
		if _, err := s.Verify(h, history); err != nil {
			return fmt.Errorf("%w\n%s", err, state)
		}
		return nil
	})
}

// damaged cuts the power while a footer is being written: it becomes garbage, and
// so does every other one that is written in the same epoch.
func (c changeTest) damaged(t testing.TB, dropped ...string) error {
	t.Helper()
	s, p := c.prepare(t)
	r, _ := c.record(t, s, p, dropped...)
	base := p.Host.Clone()
	var pending []sim.Event
	for _, e := range r.Events {
		if e.Op != sim.OpSync {
			pending = append(pending, e)
			continue
		}
		h := base.Clone()
		for _, q := range pending {
			if err := base.Apply(q); err != nil {
				return err
			}
			if q.Op == sim.OpWrite && q.Len == footerSize && string(q.Data[:8]) == footerCookie {
				q.Data = slices.Clone(q.Data)
				copy(q.Data[100:], fmt.Sprintf("garbage at %d", q.Off))
			}
			if err := h.Apply(q); err != nil {
				return err
			}
		}
		pending = nil
		if _, err := lookAt(s, h); err != nil {
			return fmt.Errorf("cut in %s: %w", e.Label, err)
		}
	}
	return nil
}

// faults fails each call of the change once, with each errno: what is in the file
// then opens, checks clean, reads the same and says the old or the new; and the
// method succeeds the next time, in the same session unless that is poisoned.
func (c changeTest) faults(t testing.TB) (points int) {
	t.Helper()
	s, p := c.prepare(t)
	before, err := lookAt(s, p.Host)
	require.NoError(t, err)
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for k := 1; ; k++ {
			h := p.Host.Clone()
			h.Record()
			g, err := crash.NewGuest(s, h)
			require.NoError(t, err)
			var where string
			h.SetFault(func(call sim.Call) error {
				if call.N == k && call.Op != sim.OpClose {
					where = fmt.Sprintf("%s %s at %#x, %s", call.Op, call.Label, call.Off, errno)
					return errno
				}
				return nil
			})
			failure := c.change(g)
			h.SetFault(nil)
			if where == "" {
				require.NoError(t, failure)
				require.NoError(t, g.Writer.Close())
				break
			}
			points++
			c.afterFault(t, s, h, g.Writer, failure, before, where)
			history := p.History.Clone()
			for _, e := range h.Events() {
				history.Note(e)
			}
			_, err = s.Verify(h, history)
			require.NoError(t, err, where)
		}
	}
	return points
}

// afterFault does the change again, where it has not answered nil.
func (c changeTest) afterFault(t testing.TB, s *crash.Subject, h *sim.Host, w ops.Writer, failure error, before, where string) {
	t.Helper()
	if failure == nil {
		require.NoError(t, w.Close(), where)
		return
	}
	again := c.twice(w)
	if errors.Is(again, ops.ErrPoisoned) {
		_ = w.Close() // the failure was answered
		_, err := lookAt(s, h)
		require.NoError(t, err, where)
		l, err := s.Open(h, ops.Write)
		require.NoError(t, err, where)
		w = l.(ops.Writer)
		again = c.twice(w)
	}
	require.NoError(t, again, where)
	require.NoError(t, w.Close(), where)
	after, err := lookAt(s, h)
	require.NoError(t, err, where)
	require.Equal(t, c.changes, before != after, where)
}

// needs asks that some state breaks a promise without the sync.
func (c changeTest) needs(t testing.TB, label string) {
	t.Helper()
	_, err := c.states(t, label)
	if err == nil {
		err = c.damaged(t, label)
	}
	require.Error(t, err, "nobody sees that %s is dropped", label)
	t.Logf("%v", err)
}

// trueBatmap asks that blktap's map, where its cookie is found, has its checksum and
// says "full" of full blocks only (T29).
func trueBatmap(b []byte) error {
	be := binary.BigEndian
	h, err := decodeHeader(b[be.Uint64(b[16:]):][:headerSize])
	if err != nil {
		return err
	}
	at := roundUp(int64(h.tableOffset)+h.tableBytes(), sectorSize)
	if string(b[at:at+8]) != batmapCookie {
		return nil
	}
	m := b[be.Uint64(b[at+8:]):][:be.Uint32(b[at+16:])*sectorSize]
	if got, want := be.Uint32(b[at+24:]), checksum(m, len(m)); got != want {
		return fmt.Errorf("batmap: checksum %#x, want %#x", got, want)
	}
	for i := range int64(h.entries) {
		s := be.Uint32(b[int64(h.tableOffset)+4*i:])
		if !bitSet(m, i) {
			continue
		}
		if s == unused {
			return fmt.Errorf("batmap: block %d is full, says the map, and is not there", i)
		}
		if n, set := bitRun(b[int64(s)*sectorSize:], 0, int64(h.blockSize)/sectorSize); !set || n < int64(h.blockSize)/sectorSize {
			return fmt.Errorf("batmap: block %d is full, says the map, and is not", i)
		}
	}
	return nil
}

// pattern is n bytes that are nowhere zeros.
func pattern(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }
