package vhdx

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// doing is a step that calls a method of the Writer: the recording shows when it
// was asked for and when it had answered.
func doing(name string, f func(w *Writer) error) crash.Step {
	return crash.Step{Name: name, Do: func(g *crash.Guest) error {
		g.Host.Ack("ask "+name, nil)
		err := f(g.Writer.(*Writer))
		if err == nil {
			g.Host.Ack("did "+name, nil)
		}
		return err
	}}
}

// found is what a test looks at in a state that a power cut left.
type found struct {
	asked, did map[string]bool
	disk       *Disk
	host       *sim.Host
}

// cutChange cuts the power everywhere in a sequence of steps: each state must keep
// the guest's promises, and pass judge. It answers the first thing that is wrong.
func cutChange(t *testing.T, c crashed, q crash.Sequence, judgeOf func(base *Disk) func(found) error, dropped ...string) (int, error) {
	t.Helper()
	s, p := c.start(t)
	base, err := openHost(t, p.Host.Clone(), ops.Read)
	require.NoError(t, err)
	judge := judgeOf(base)
	r, _, err := s.Record(p, q, dropped...)
	require.NoError(t, err)
	limit := 100
	if os.Getenv("CI") != "" || len(dropped) > 0 {
		limit = 20_000
	}
	history, seen, states := p.History.Clone(), 0, 0
	at := found{asked: map[string]bool{}, did: map[string]bool{}}
	err = r.Each(1, func(state *crash.State) error {
		if states++; states > limit {
			return errEnough
		}
		for ; seen < state.At; seen++ {
			e := r.Events[seen]
			if history.Note(e); e.Op == sim.OpAck && len(e.Label) > 4 {
				map[string]map[string]bool{"ask ": at.asked, "did ": at.did, "writ": {}, "flus": {}, "clos": {}, "refu": {}, "comp": {}}[e.Label[:4]][e.Label[4:]] = true
			}
		}
		h, err := state.Host()
		require.NoError(t, err)
		at.host = h.Clone()
		if _, err := s.Verify(h, history); err != nil {
			return fmt.Errorf("%w\n%s", err, state)
		}
		if at.disk, err = openHost(t, at.host, ops.Read); err != nil {
			return err
		}
		if err := errors.Join(judge(at), at.disk.Close()); err != nil {
			return fmt.Errorf("%w\n%s", err, state)
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err == nil && len(dropped) == 0 {
		_, err = s.Run(r, p.History, crash.Options{Deep: 40, Limit: 200})
	}
	return states, err
}

var errEnough = errors.New("enough")

// failEach runs q with each of its calls that change the file failing once: what
// the method promises of the image holds, and where nothing was poisoned the same
// method succeeds the next time.
func failEach(t *testing.T, c crashed, q crash.Sequence, judge func(h *sim.Host) error) {
	t.Helper()
	s, p := c.start(t)
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for k := 1; ; k++ {
			h := p.Host.Clone()
			hit := failKth(h, k, errno)
			g, err := crash.NewGuest(s, h)
			require.NoError(t, err)
			h.Record()
			for _, step := range q {
				err := step.Do(g)
				if err == nil {
					continue
				}
				if err := step.Do(g); err != nil {
					require.ErrorIs(t, err, ops.ErrPoisoned, "call %d fails with %v: %s again", k, errno, step.Name)
					break
				}
			}
			_ = g.Close()
			history := p.History.Clone()
			for _, e := range h.Events() {
				history.Note(e)
			}
			if !*hit {
				require.Greater(t, k, 5)
				break
			}
			h.SetFault(nil)
			if judge != nil {
				require.NoError(t, judge(h.Clone()), "call %d fails with %v", k, errno)
			}
			d, err := openHost(t, h, ops.Read)
			require.NoError(t, err, "call %d fails with %v", k, errno)
			size := d.Size()
			require.NoError(t, d.Close())
			_, err = s.Verify(h, history.Until(size))
			require.NoError(t, err, "call %d fails with %v", k, errno)
		}
	}
}

// failKth makes the k-th call that changes the file fail.
func failKth(h *sim.Host, k int, errno syscall.Errno) *bool {
	n, hit := 0, new(bool)
	h.SetFault(func(c sim.Call) error {
		switch c.Op {
		case sim.OpWrite, sim.OpSync, sim.OpTruncate, sim.OpPunch, sim.OpAllocate:
			if n++; n == k {
				*hit = true
				return errno
			}
		}
		return nil
	})
	return hit
}

// viewOf tells one content of a disk from another: absent bytes are told from zeros.
func viewOf(d *Disk) [32]byte {
	h := sha256.New()
	p := make([]byte, 256*kib)
	absent := false
	for off := int64(0); off < d.Size(); {
		n, kind, err := d.ReadRun(p, off)
		if err != nil || n == 0 {
			fmt.Fprintf(h, "%d: %v", off, err)
			break
		}
		if absent != (kind == ops.Absent) {
			absent = !absent
			fmt.Fprintf(h, "absent %v at %d", absent, off)
		}
		if kind == ops.Data {
			hashData(h, p[:n], off)
		}
		off += int64(n)
	}
	fmt.Fprintf(h, "%d bytes", d.Size())
	return [32]byte(h.Sum(nil))
}

// hashData hashes the sectors that are not zeros, and where they are.
func hashData(h io.Writer, p []byte, off int64) {
	for at := 0; at < len(p); at += 512 {
		if s := p[at : at+512]; !bytes.Equal(s, ops.Zeros(512)) {
			fmt.Fprintf(h, "%d", off+int64(at))
			h.Write(s)
		}
	}
}

// within asks that a value is the old or the new one, and the new one after the
// method answered.
func within[T comparable](what string, got, was, is T, did bool) error {
	if got == is || got == was && !did {
		return nil
	}
	return fmt.Errorf("%s is %v; was %v, to be %v, answered: %v", what, got, was, is, did)
}
