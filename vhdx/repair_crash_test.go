package vhdx

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// The power goes at any time: the repair can be done again, and is not lost once it
// was answered.
func TestStatesOfRepairs(t *testing.T) {
	for name, c := range repairTests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := c.states(t)
			require.NoError(t, err)
			t.Logf("%d states, %d failed calls", n, c.faults(t))
		})
	}
}

// repairStates is how many states of a repair are tried: both region tables are a log
// entry of 34 pages.
func repairStates() int {
	if os.Getenv("CI") != "" {
		return 150
	}
	return 60
}

// states cuts the power in a repair, at places spread over all that there are, or
// with dropped syncs at every one.
func (c repairTest) states(t testing.TB, dropped ...string) (n int, err error) {
	t.Helper()
	h, _ := place(t, c.v)
	base := h.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	h.Record()
	w := openRepair(t, h)
	_, err = repair(t, w)
	require.NoError(t, err)
	done := len(h.Events())
	h.Ack("repaired", nil)
	require.NoError(t, w.Close())
	r := crash.Recording{Base: base, Events: h.Events()}
	all := 0
	require.NoError(t, r.Each(1, func(*crash.State) error { all++; return nil }))
	step, at := 1, 0
	if len(dropped) == 0 {
		step = max(1, all/repairStates())
	}
	return (all + step - 1) / step, r.Each(1, func(s *crash.State) error {
		if at++; (at-1)%step != 0 {
			return nil
		}
		host, err := s.Host()
		if err != nil {
			return err
		}
		if s.At <= done {
			w := openRepair(t, host)
			_, err = repair(t, w)
			if err = errors.Join(err, w.Close()); err != nil {
				return fmt.Errorf("%w\n%s", err, s)
			}
		}
		left := c.left
		if s.At <= done {
			left = []string{"vhdx.space.leaked"} // spare space of a session that was cut off
		}
		if err := c.sound(t, host, s.At > done, left); err != nil {
			return fmt.Errorf("%w\n%s", err, s)
		}
		return nil
	})
}

// faults fails each call, and repairs again.
func (c repairTest) faults(t testing.TB) (points int) {
	t.Helper()
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for k := 1; ; k++ {
			h, _ := place(t, c.v)
			w := openRepair(t, h)
			hit := false
			h.SetFault(func(call sim.Call) error {
				if call.N == k && call.Op != sim.OpClose {
					hit = true
					return errno
				}
				return nil
			})
			_, failure := repair(t, w)
			h.SetFault(nil)
			if !hit {
				require.NoError(t, failure)
				require.NoError(t, w.Close())
				break
			}
			points++
			_, err := repair(t, w)
			if errors.Is(err, ops.ErrPoisoned) {
				_ = w.Close() // the failure was answered
				w = openRepair(t, h)
				_, err = repair(t, w)
			}
			require.NoError(t, err, "call %d, %v", k, errno)
			require.NoError(t, w.Close())
			require.NoError(t, c.sound(t, h, false, []string{"vhdx.space.leaked"}), "call %d, %v", k, errno)
		}
	}
	return points
}

func TestEverySyncOfARepairIsNeeded(t *testing.T) {
	for label, name := range map[string]string{
		"vhdx.header.emptied": "empty log", "vhdx.log.entry": "region table 1", "vhdx.replay": "dirty log",
		"vhdx.cut": "bytes behind the last block",
	} {
		t.Run(label, func(t *testing.T) {
			_, err := repairTests()[name].states(t, label)
			require.Error(t, err)
			t.Log(err)
		})
	}
}
