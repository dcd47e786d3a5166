package vhdx

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// cutResize cuts the power everywhere in a change of size, with a guest that
// writes before and after it.
func cutResize(t *testing.T, tt resizing, limit int, dropped ...string) error {
	t.Helper()
	v, to, below := tt.image, tt.to, tt.below
	dataOf(&v)
	c := crashed{name: "resized", was: v.Writes, host: func(t *testing.T) *sim.Host {
		h, m := place(t, v)
		poisonTails(t, h, v, m)
		return h
	}}
	s, p := c.start(t)
	size := min(v.Size, to)
	small := func(g *crash.Guest) error { return g.Write(max(0, size-8192), min(4096, size)) }
	q := crash.Sequence{
		{Name: "write", Do: small}, crash.Steps[8],
		busyWhileMoving(doing("resize", func(w *Writer) error { return w.Resize(here, to, below) })),
		{Name: "write", Do: small}, crash.Steps[3], crash.Steps[8],
	}
	r, _, err := s.Record(p, q, dropped...)
	require.NoError(t, err)
	base, err := openHost(t, p.Host.Clone(), ops.Read)
	require.NoError(t, err)
	link := base.Info().LinkID
	history, seen, states, did := p.History.Clone(), 0, 0, false
	err = r.Each(3, func(state *crash.State) error {
		for ; seen < state.At; seen++ {
			history.Note(r.Events[seen])
			did = did || r.Events[seen].Label == "did resize"
		}
		if states++; states > limit {
			return errEnough
		}
		h, err := state.Host()
		require.NoError(t, err)
		if n := lengthOf(t, h); did && to < v.Size && tt.fileMiBs > 0 && n > tt.fileMiBs*mib {
			return fmt.Errorf("the file has %d bytes, was to have %d MiB\n%s", n, tt.fileMiBs, state)
		}
		if err := judgeSize(t, s, h, history, v.Size, to, below, did, link); err != nil {
			return fmt.Errorf("%w\n%s", err, state)
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if len(dropped) == 0 {
		t.Logf("%d states", states)
	}
	return err
}

// busyWhileMoving lets a guest write and flush when the first page of a table was
// read to be copied.
func busyWhileMoving(s crash.Step) crash.Step {
	return crash.Step{Name: s.Name, Do: func(g *crash.Guest) error {
		met := false
		var busy error
		g.Host.SetFault(func(c sim.Call) error {
			if w := g.Writer.(*Writer); !met && c.Op == sim.OpWrite && w.session != nil && w.session.moving != nil {
				met = true
				busy = errors.Join(g.Write(mib, 4096), g.Flush()) // a block that was not there
			}
			return nil
		})
		err := s.Do(g)
		g.Host.SetFault(nil)
		return errors.Join(err, busy)
	}}
}

// judgeSize judges one state: old or new size, and the content that goes with it.
func judgeSize(t *testing.T, s *crash.Subject, h *sim.Host, history *crash.History, old, to, below int64, did bool, link ops.GUID) error {
	d, err := openHost(t, h.Clone(), ops.Read)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := within("size", d.Size(), old, to, did); err != nil {
		return err
	}
	if d.Size() == to && d.Info().LinkID == link {
		return errors.New("another size under the old link id")
	}
	for at := old; at < min(d.Size(), below, old+30*mib); {
		x, err := d.Extent(at, d.Size()-at)
		if err != nil {
			return err
		}
		if x.Kind == ops.Absent {
			return fmt.Errorf("the parent shows at %d", at)
		}
		at += x.Len
	}
	_, err = s.Verify(h, history.Until(d.Size()))
	return err
}

func TestPowerCutsOfResize(t *testing.T) {
	limit := 100
	if os.Getenv("CI") != "" {
		limit = 5000
	}
	for _, tt := range resized {
		if tt.to > 250<<30 {
			continue // as the others, and slow
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, cutResize(t, tt, limit))
		})
	}
}

// Each call of a resize fails once: the disk has the old size or the new one, and
// the same request succeeds.
func TestFailedResize(t *testing.T) {
	for _, tt := range resized {
		if tt.to > 250<<30 || tt.to > 100<<30 && tt.image.Parent != nil {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := tt.image
			dataOf(&v)
			c := crashed{name: tt.name, was: v.Writes, host: func(t *testing.T) *sim.Host { h, _ := place(t, v); return h }}
			q := crash.Sequence{
				doing("resize", func(w *Writer) error { return w.Resize(here, tt.to, tt.below) }),
				crash.Steps[3], crash.Steps[8],
			}
			failEach(t, c, q, nil)
		})
	}
}

// Each sync on the way is needed.
func TestResizeSyncsAreNeeded(t *testing.T) {
	smaller := resizing{image: fixture.VHDX{Size: 9*mib + 512}, to: 3*mib + 512, fileMiBs: 4 + 2*2}
	larger := resizing{image: fixture.VHDX{Size: 5*mib + 512, BlockSize: 1 << 20}, to: 200 << 30}
	for _, tt := range []struct {
		label string
		r     resizing
	}{
		{"vhdx.settle", resizing{image: fixture.VHDX{Size: 5*mib + 512, Parent: parentLocator()}, to: 15*mib + 512, below: 9*mib + 512}},
		{"vhdx.log.entry", larger},
		{"vhdx.bat.copy", larger},
		{"vhdx.log.first", smaller},
		{"vhdx.cut", smaller},
	} {
		t.Run(tt.label, func(t *testing.T) {
			t.Parallel()
			err := cutResize(t, tt.r, 20_000, tt.label)
			require.Error(t, err, "dropped, and nobody sees it")
			t.Logf("%.300s", err)
		})
	}
}
