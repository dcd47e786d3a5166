package vhd

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// Every call that changes the file fails once, with every errno, and the power
// goes at any time of that: nothing acknowledged is lost and nothing but what
// was asked for shows (F02-F05, section 13 rows 3 and 12).
func TestFaults(t *testing.T) {
	sequences, stride := 5, 1
	if testing.Short() {
		sequences = 3
	}
	for name, v := range crashSubjects() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, p := crashSubject(t, v)
			points := 0
			for i, q := range crash.Sequences(3)[:sequences] {
				for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EFBIG} {
					for k := 0; runWithFault(t, s, p, q, k, errno, uint64(i)); k += stride {
						points++
					}
				}
			}
			t.Logf("%d points", points)
		})
	}
}

// runWithFault fails the k-th change; false when there are fewer.
func runWithFault(t *testing.T, s *crash.Subject, p *crash.Prepared, q crash.Sequence, k int, errno syscall.Errno, seed uint64) bool {
	t.Helper()
	h := p.Host.Clone()
	h.Record()
	g, err := crash.NewGuest(s, h)
	require.NoError(t, err)
	n := 0
	h.SetFault(func(c sim.Call) error {
		switch c.Op {
		case sim.OpWrite, sim.OpSync, sim.OpTruncate, sim.OpPunch:
			n++
			if n == k+1 {
				return errno
			}
		}
		return nil
	})
	for _, step := range q {
		if step.Name == "reopen" {
			step.Do = (*crash.Guest).Flush
		}
		if err := step.Do(g); err != nil { // the guest was told, and counts on nothing since its last flush
			require.Greater(t, n, k, "%s: %s: %v", q, step.Name, err)
			break
		}
	}
	_ = g.Writer.Close() // a poisoned disk may say so again
	_, err = s.Run(&crash.Recording{Base: p.Host.Clone(), Events: h.Events()}, p.History, crash.Options{Seed: seed, Limit: 200})
	require.NoError(t, err, "%s, call %d fails with %v", q, k, errno)
	return n > k
}

// F02, F03: a growth that fails leaves the file as it was, footer and length,
// and the same write succeeds when there is room.
func TestFailedGrowthIsUndone(t *testing.T) {
	for name, v := range map[string]fixture.VHD{"sound": {Size: 8 << 20}, "no tail": {Size: 8 << 20, NoTail: true}} {
		for _, op := range []sim.Op{sim.OpTruncate, sim.OpWrite} {
			t.Run(fmt.Sprintf("%s %s", name, op), func(t *testing.T) {
				h := disk(v.Bytes())
				before := image(t, h)
				w := openWriter(t, h)
				failed := false
				h.SetFault(func(c sim.Call) error {
					if c.Op == op && !failed {
						failed = true
						return syscall.ENOSPC
					}
					return nil
				})
				_, err := w.WriteAt(make([]byte, 512), 0)
				require.ErrorIs(t, err, syscall.ENOSPC)
				require.True(t, bytes.Equal(before, image(t, h)))
				write(t, w, 0, 1, 1)
				require.NoError(t, w.Close())
				require.Empty(t, mustOpen(t, image(t, h)).Info().Anomalies)
			})
		}
	}
}
