package vhd

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// Power cuts of whole sessions, on every kind of VHD, are in test/crash. Here
// are two promises that only some bytes of a guest put to the test.

// crashSubject is an image for the engines, with an empty history.
func crashSubject(t testing.TB, v fixture.VHD) (*crash.Subject, *crash.Prepared) {
	t.Helper()
	s := &crash.Subject{Format: Format, Path: "/d.vhd", Differencing: v.Type == 4}
	return s, &crash.Prepared{Host: disk(v.Bytes()), History: crash.NewHistory(s.Differencing)}
}

// eachState writes data at the end of blocks 0 to 3, closes, and calls check with
// what opens in each state of that; closed when the close was done.
func eachState(t *testing.T, v fixture.VHD, data []byte, check func(l ops.Layer, closed bool) error, dropped ...string) error {
	t.Helper()
	_, err := crash.Job{
		Do: func(h *sim.Host) error {
			l, err := Open(openFile(t, h, ops.Write), ops.OpenOptions{Write: true, Cache: ops.NewCache(1 << 20)})
			if err != nil {
				return err
			}
			w := l.(ops.Writer)
			for b := range int64(4) {
				if _, err := w.WriteAt(data, (b+1)*int64(v.BlockSize)-int64(len(data))); err != nil {
					return err
				}
				if b == 1 {
					if err := w.Flush(); err != nil {
						return err
					}
				}
			}
			return w.Close()
		},
		Judge: func(h *sim.Host, closed bool) error {
			l, err := Open(openFile(t, h, ops.Read), ops.OpenOptions{Cache: ops.NewCache(1 << 20)})
			if err != nil {
				return err
			}
			return errors.Join(check(l, closed), l.Close())
		},
	}.Run(disk(v.Bytes()), crash.Options{Seed: 1}, dropped...)
	return err
}

// A guest that writes a footer of its own into its last sector must never see
// it end the file: with the sync between the growth and the data, it cannot.
func TestGuestCannotForgeTheFooter(t *testing.T) {
	v := fixture.VHD{Size: 32 << 10, BlockSize: 4096}
	forged := fixture.VHD{Size: 512, Type: 2}.Bytes()[512:]
	sameDisk := func(l ops.Layer, _ bool) error {
		if l.Size() != v.Size || l.Info().Type != ops.Dynamic {
			return fmt.Errorf("%s disk of %d bytes", l.Info().Type, l.Size())
		}
		return nil
	}
	for _, unaligned := range []bool{false, true} {
		v.Unaligned = unaligned
		require.NoError(t, eachState(t, v, forged, sameDisk))
		require.ErrorContains(t, eachState(t, v, forged, sameDisk, "vhd.footer"), "fixed disk of 512 bytes")
	}
}

// After a clean close nothing is left to mend.
func TestCloseLeavesBothFooters(t *testing.T) {
	v := fixture.VHD{Size: 256 << 10, BlockSize: 4096}
	sound := func(l ops.Layer, closed bool) error {
		if as := l.Info().Anomalies; closed && len(as) > 0 {
			return fmt.Errorf("%v", as)
		}
		return nil
	}
	require.NoError(t, eachState(t, v, make([]byte, 512), sound))
	require.ErrorContains(t, eachState(t, v, make([]byte, 512), sound, "vhd.trim"), "vhd.footer.end")
}
