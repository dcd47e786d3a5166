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

// crashSubjects are the states from which the power is cut: sound images and
// those that an earlier crash left.
func crashSubjects() map[string]fixture.VHD {
	return map[string]fixture.VHD{
		"fixed":        {Size: 32 << 10, Type: 2},
		"dynamic":      {Size: 32 << 10, BlockSize: 4096},
		"unaligned":    {Size: 40 << 10, BlockSize: 8192, Unaligned: true},
		"clear bits":   {Size: 32 << 10, BlockSize: 4096, ExactBitmap: true, Blocks: []int64{1, 0}},
		"differencing": {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent()},
		"no tail":      {Size: 32 << 10, BlockSize: 4096, NoTail: true, Blocks: []int64{1}},
		"no copy":      {Size: 32 << 10, BlockSize: 4096, NoCopy: true, Blocks: []int64{1}},
		"leak":         {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent(), Gap: 8192, Blocks: []int64{1}, BAT: map[int64]uint32{1: unused}},
	}
}

func crashSubject(t testing.TB, v fixture.VHD) (*crash.Subject, *crash.Prepared) {
	t.Helper()
	s := &crash.Subject{Format: Format, Path: "/d.vhd", Differencing: v.Type == 4}
	h := sim.New()
	h.Put("/d.vhd", v.Bytes())
	return s, &crash.Prepared{Host: h, History: crash.NewHistory(s.Differencing)}
}

// Short sequences from every start, cut everywhere, and the repairs cut too.
func TestCrashStates(t *testing.T) {
	limit := 40
	if testing.Short() {
		limit = 8
	}
	for name, v := range crashSubjects() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, p := crashSubject(t, v)
			var total crash.Result
			for i, q := range crash.Sequences(1)[:limit] {
				r, _, err := s.Record(p, q)
				require.NoError(t, err, "%s", q)
				n, err := s.Run(r, p.History, crash.Options{Seed: uint64(i), Limit: 300, Deep: 25})
				total.Add(n)
				require.NoError(t, err, "%s", q)
			}
			t.Logf("%d states, %d of repairs", total.States, total.Deep)
		})
	}
}

// Each sync is needed: without it some state breaks a promise. Two are seen by
// the tests below this one.
func TestEverySyncIsNeeded(t *testing.T) {
	for label, start := range map[string]string{
		"vhd.copy": "no copy", "vhd.data": "dynamic", "vhd.table": "dynamic", "vhd.fixed": "fixed",
	} {
		t.Run(label, func(t *testing.T) {
			s, p := crashSubject(t, crashSubjects()[start])
			for i, q := range crash.Sequences(2)[:60] {
				r, _, err := s.Record(p, q, label)
				require.NoError(t, err)
				_, err = s.Run(r, p.History, crash.Options{Seed: uint64(i), Limit: 300})
				var v *crash.Violation
				if errors.As(err, &v) {
					t.Logf("seen by %q: %v", q, v)
					return
				}
				require.NoError(t, err)
			}
			t.Fatal("nobody sees that it is dropped")
		})
	}
}

// eachState writes blocks 0 to 3 with data, closes, and calls check with what
// opens in each state of that; closed when the close was done.
func eachState(t *testing.T, v fixture.VHD, data []byte, dropped string, check func(l ops.Layer, closed bool) error) error {
	t.Helper()
	h := disk(v.Bytes())
	base := h.Clone()
	if dropped != "" {
		h.DropSync(dropped)
	}
	h.Record()
	l, err := Open(openFile(t, h, ops.Write), ops.OpenOptions{Write: true, Cache: ops.NewCache(1 << 20)})
	require.NoError(t, err)
	w := l.(ops.Writer)
	for b := range int64(4) {
		_, err := w.WriteAt(data, (b+1)*int64(v.BlockSize)-int64(len(data)))
		require.NoError(t, err)
		if b == 1 {
			require.NoError(t, w.Flush())
		}
	}
	require.NoError(t, w.Close())
	h.Ack("closed", nil)
	events := h.Events()
	r := crash.Recording{Base: base, Events: events}
	return r.Each(1, func(s *crash.State) error {
		host, err := s.Host()
		if err != nil {
			return err
		}
		l, err := Open(openFile(t, host, ops.Read), ops.OpenOptions{Cache: ops.NewCache(1 << 20)})
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		if err := check(l, s.At == len(events)); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		return l.Close()
	})
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
		require.NoError(t, eachState(t, v, forged, "", sameDisk))
		require.ErrorContains(t, eachState(t, v, forged, "vhd.footer", sameDisk), "fixed disk of 512 bytes")
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
	require.NoError(t, eachState(t, v, make([]byte, 512), "", sound))
	require.ErrorContains(t, eachState(t, v, make([]byte, 512), "vhd.trim", sound), "vhd.footer.end")
}
