package vhdx

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// crashed is an image that loses its power. Whole sessions of every kind are cut
// in test/crash, methods on these images here.
type crashed struct {
	name    string
	was     []fixture.Write // what the image holds from the start
	host    func(t *testing.T) *sim.Host
	child   bool
	prepare []crash.Step
	lasting []string // anomalies that no first write mends
}

func crashedImages() []crashed {
	created := func(s ops.CreateSpec) func(*testing.T) *sim.Host {
		return func(t *testing.T) *sim.Host {
			h := sim.New()
			f, err := h.Dir("/img").Create(testImage, 0o600)
			require.NoError(t, err)
			require.NoError(t, Format.Create(f, s))
			require.NoError(t, f.Close())
			return h
		}
	}
	stored := func(v fixture.VHDX) func(*testing.T) *sim.Host {
		return func(t *testing.T) *sim.Host { h, _ := place(t, v); return h }
	}
	const size = 4*mib + 8192
	dirty := []fixture.Write{{Off: mib - 4096, Data: fill(8192, 1)}, {Off: 3 * mib, Data: fill(int(mib), 2)}}
	used := []crash.Step{crash.Steps[1], crash.Steps[0], crash.Steps[8]}
	return []crashed{
		{name: "dirty log", was: dirty, host: stored(fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: dirty, Log: &fixture.Log{Tables: true}})},
		{name: "dirty log of a child", was: dirty, host: stored(fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: dirty, Parent: parentLocator(), Log: &fixture.Log{Tables: true}}), child: true},
		{name: "dynamic", host: created(ops.CreateSpec{Type: ops.Dynamic, Size: size, BlockSize: 1 << 20})},
		{name: "dynamic, used", host: created(ops.CreateSpec{Type: ops.Dynamic, Size: size, BlockSize: 1 << 20}), prepare: used},
		{name: "fixed", host: created(ops.CreateSpec{Type: ops.Fixed, Size: size, BlockSize: 1 << 20})},
		{name: "child", host: created(childSpec(ops.CreateSpec{Size: size, BlockSize: 1 << 20})), child: true},
		{name: "child, used, 4K", host: created(childSpec(ops.CreateSpec{Size: size, BlockSize: 1 << 20, LogicalSector: 4096})), child: true, prepare: used},
	}
}

func (c crashed) start(t *testing.T) (*crash.Subject, *crash.Prepared) {
	t.Helper()
	s := &crash.Subject{Format: Format, Path: "/img/" + testImage, Differencing: c.child, Lasting: c.lasting}
	if c.prepare == nil {
		history := crash.NewHistory(c.child)
		for _, w := range c.was {
			history.Hold(w.Off, w.Data)
		}
		return s, &crash.Prepared{Host: c.host(t), History: history}
	}
	p, err := s.Prepare(c.host(t), c.prepare...)
	require.NoError(t, err)
	return s, p
}
