package set_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/sim"
)

// TestSetsWithFaults fails each call of each operation once, and from then on: the
// set shows what it showed before or after, to who has it open and to who opens it
// later, and can be taken apart.
func TestSetsWithFaults(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			calls := callsOf(t, c)
			every := max(1, calls/(3*sequences(t)))
			for k := 1; k <= calls; k += every {
				for _, lasts := range []bool{false, true} {
					if err := faulty(c, k, lasts); err != nil {
						t.Fatalf("call %d of %d, for good: %t: %v", k, calls, lasts, err)
					}
				}
			}
		})
	}
}

func callsOf(t *testing.T, c change) int {
	s, err := prepared(c)
	require.NoError(t, err)
	n := 0
	s.host.SetFault(func(sim.Call) error { n++; return nil })
	require.NoError(t, c.do(s))
	return n
}

func faulty(c change, k int, lasts bool) error {
	s, err := prepared(c)
	if err != nil {
		return err
	}
	before := s.content()
	n := 0
	s.host.SetFault(func(call sim.Call) error {
		if n++; n == k || lasts && n > k {
			return syscall.EIO
		}
		return nil
	})
	failed := c.do(s)
	s.host.SetFault(nil)
	after := s.content()
	may := []content{before, after}
	if failed == nil {
		may = may[1:]
	}
	if s.disk != nil { // a guest reads on, as one of both
		if err := reads(s.disk, before.leaf); err != nil {
			if err := reads(s.disk, after.leaf); err != nil {
				return fmt.Errorf("who has it open reads otherwise: %w; %v", err, failed)
			}
		}
	}
	_ = errors.Join(s.close(), s.lib.Close()) // a session that failed may not end well
	if err := judge(s.host, may...); err != nil {
		return fmt.Errorf("%w\nthe operation: %v", err, failed)
	}
	return nil
}
