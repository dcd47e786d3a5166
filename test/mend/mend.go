// Package mend asks of the repair of a damaged image what is the same for every
// format: that its caller can stop it, that it can be done again when a call failed or
// the power went, and that it is not lost once it was answered.
package mend

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// Writer is a damaged image, open to be mended.
type Writer interface {
	ops.Writer
	ops.Repairer
}

// Case is a damaged image.
type Case struct {
	Place func() *sim.Host                // a host with it
	Open  func(*sim.Host) (Writer, error) // to mend it
	// Sound asks that it is mended, and holds what it should; closed: after a close, and
	// not after a failure or a power cut that a later repair followed.
	Sound func(h *sim.Host, closed bool) error
	Says  int // changes that it reports
	Limit int // power cuts that are tried, spread over all there are; 0: all
}

// Repair mends an image and tells what it reported, in order.
func Repair(t testing.TB, w ops.Repairer) (said []ops.Anomaly, err error) {
	t.Helper()
	err = w.Repair(t.Context(), func(a ops.Anomaly) error { said = append(said, a); return nil })
	return said, err
}

// open is Open of an image that is known to open.
func (c Case) open(t testing.TB, h *sim.Host) Writer {
	t.Helper()
	w, err := c.Open(h)
	require.NoError(t, err)
	return w
}

// ReportsFirst asks that what will change is reported before it does, and that the
// caller may stop it there.
func (c Case) ReportsFirst(t *testing.T) {
	for k := range c.Says {
		h := c.Place()
		w := c.open(t, h)
		before, n, full := h.Changes(), 0, errors.New("nowhere to write that down")
		err := w.Repair(t.Context(), func(ops.Anomaly) error {
			if n++; n > k {
				return full
			}
			return nil
		})
		require.ErrorIs(t, err, full, "report %d", k)
		if k == 0 {
			require.Equal(t, before, h.Changes())
		}
		require.NoError(t, w.Close())
	}
}

// Cut cuts the power in a repair, with some syncs dropped, and mends what is left. It
// tells how many states that were.
func (c Case) Cut(t testing.TB, dropped ...string) (n int, err error) {
	t.Helper()
	h := c.Place()
	base := h.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	h.Record()
	w := c.open(t, h)
	_, err = Repair(t, w)
	require.NoError(t, err)
	done := len(h.Events())
	h.Ack("repaired", nil)
	require.NoError(t, w.Close())
	r := crash.Recording{Base: base, Events: h.Events()}
	all, step, at := 0, 1, 0
	require.NoError(t, r.Each(1, func(*crash.State) error { all++; return nil }))
	if c.Limit > 0 && len(dropped) == 0 {
		step = max(1, all/c.Limit)
	}
	return (all + step - 1) / step, r.Each(1, func(s *crash.State) error {
		if at++; (at-1)%step != 0 {
			return nil
		}
		if err := c.after(t, s, s.At > done); err != nil {
			return fmt.Errorf("%w\n%s", err, s)
		}
		return nil
	})
}

// after mends what a power cut left, but where that was answered.
func (c Case) after(t testing.TB, s *crash.State, answered bool) error {
	h, err := s.Host()
	if err != nil {
		return err
	}
	if !answered {
		w, err := c.Open(h)
		if err != nil {
			return err
		}
		_, err = Repair(t, w)
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
	}
	return c.Sound(h, answered)
}

// Fail fails each call of a repair in turn, and repairs again. It tells how many that
// were.
func (c Case) Fail(t testing.TB) (points int) {
	t.Helper()
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for k := 1; c.fail(t, k, errno); k++ {
			points++
		}
	}
	return points
}

// fail fails the k-th call; false: there are fewer.
func (c Case) fail(t testing.TB, k int, errno syscall.Errno) bool {
	t.Helper()
	h := c.Place()
	w := c.open(t, h)
	hit := false
	h.SetFault(func(call sim.Call) error {
		if call.N == k && call.Op != sim.OpClose {
			hit = true
			return errno
		}
		return nil
	})
	_, failure := Repair(t, w)
	h.SetFault(nil)
	if !hit {
		require.NoError(t, failure)
		require.NoError(t, w.Close())
		return false
	}
	_, err := Repair(t, w)
	if errors.Is(err, ops.ErrPoisoned) {
		_ = w.Close() // the failure was answered
		w = c.open(t, h)
		_, err = Repair(t, w)
	}
	require.NoError(t, err, "call %d, %v", k, errno)
	require.NoError(t, w.Close())
	require.NoError(t, c.Sound(h, false), "call %d, %v", k, errno)
	return true
}
