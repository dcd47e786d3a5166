package set_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// content is what a set shows.
type content struct {
	leaf  image
	snaps map[string]image
	refs  map[string]bool
}

func (s *scene) content() content {
	return content{s.leaf, maps.Clone(s.snaps), maps.Clone(s.refs)}
}

// change is an operation that is cut.
type change struct {
	name string
	open bool // a guest has the disk open for writing
	late bool // and writes just before, without a flush: only states with another active disk are judged
	do   func(s *scene) error
}

func take(l string) func(s *scene) error {
	return func(s *scene) error {
		err := s.ask("snapshot", setName, l)
		s.snaps[l] = s.leaf
		return err
	}
}

func remove(l string) func(s *scene) error {
	return func(s *scene) error {
		delete(s.snaps, l)
		return s.ask("delete", setName, l)
	}
}

func changes() []change {
	optimize := func(s *scene) error { return s.ask("optimize", setName, "") }
	return []change{
		{name: "first snapshot", open: true, do: take("a")},
		{name: "second snapshot", open: true, do: take("b")},
		{name: "second snapshot, nobody there", open: false, do: take("b")},
		{name: "snapshot of what was not flushed", open: true, late: true, do: take("b")},
		{name: "apply", open: false, do: func(s *scene) error {
			s.leaf = s.snaps["s1"]
			return s.ask("apply", setName, "s1")
		}},
		{name: "apply keep", open: false, do: func(s *scene) error {
			s.snaps["k"] = s.leaf
			s.leaf = s.snaps["s1"]
			return s.ask("apply", setName, "snapshot=s1 keep=k")
		}},
		{name: "delete", open: true, do: remove("s2")},
		{name: "delete as reference", open: true, do: func(s *scene) error {
			delete(s.snaps, "s2")
			s.refs["s2"] = true
			return s.ask("delete", setName, "s2 persist=true")
		}},
		{name: "delete the last", open: false, do: remove("s1")},
		{name: "another id", open: false, do: func(s *scene) error {
			return s.ask("set", setName, "id=11111111-2222-3333-4444-555555555555")
		}},
		{name: "optimize, the leaf goes", open: true, do: optimize},
		{name: "optimize, a middle disk goes", open: true, do: optimize},
		{name: "optimize, a thrown away tip", open: false, do: optimize},
	}
}

// prepared is a set in the state that a change needs.
func prepared(c change) (*scene, error) {
	s, err := newScene()
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(4, 4))
	steps := []func(s *scene) error{}
	w := func(s *scene) error { return s.write(rng) }
	switch c.name {
	case "first snapshot":
		steps = append(steps, w)
	case "optimize, the leaf goes":
		steps = append(steps, w, take("s1"), w, take("s2"), w, remove("s2"))
	case "optimize, a middle disk goes":
		steps = append(steps, w, take("s1"), w, take("s2"), w, remove("s1"))
	default:
		steps = append(steps, w, take("s1"), w, take("s2"), w)
	}
	if c.name == "delete the last" {
		steps = append(steps, remove("s2"))
	}
	for _, step := range steps {
		if err := step(s); err != nil {
			return nil, err
		}
	}
	if c.name == "optimize, a thrown away tip" {
		keep := func(s *scene) error {
			s.snaps["k"] = s.leaf
			s.leaf = s.snaps["s1"]
			return s.ask("apply", setName, "snapshot=s1 keep=k")
		}
		if err := errors.Join(s.close(), keep(s), remove("k")(s)); err != nil {
			return nil, err
		}
	}
	if !c.open {
		return s, s.close()
	}
	return s, errors.Join(s.open(), s.write(rng), s.disk.Flush())
}

// shows compares a set with what it may show.
func shows(h *sim.Host, lib *ops.Library, want content) error {
	s := &scene{host: h, lib: lib, leaf: want.leaf, snaps: want.snaps, refs: want.refs}
	return s.check()
}

// judge opens a set after a power cut: it shows what it showed before or after, can
// be written, and can be taken apart.
func judge(h *sim.Host, may ...content) error {
	lib := library(h)
	var list []error
	at := slices.IndexFunc(may, func(c content) bool {
		err := shows(h, lib, c)
		list = append(list, err)
		return err == nil
	})
	if at < 0 {
		return errors.Join(list...)
	}
	s := &scene{host: h, lib: lib, leaf: may[at].leaf, snaps: maps.Clone(may[at].snaps), refs: maps.Clone(may[at].refs), kept: map[string]bool{}}
	if err := s.ask("optimize", setName, ""); err != nil {
		return err
	}
	if err := errors.Join(s.check(), s.write(rand.New(rand.NewPCG(1, 1))), s.check()); err != nil {
		return fmt.Errorf("after optimize: %w", err)
	}
	if err := s.takenApart(true); err != nil {
		return fmt.Errorf("taken apart: %w", err)
	}
	return s.lib.Close()
}

// leafOf is the active disk that the set names, "" where it cannot be read.
func leafOf(h *sim.Host) string {
	found, err := library(h).Inspect(library(h).Top(setName))
	if err != nil || found.Set == nil {
		return ""
	}
	return found.Set.Leaf
}

// cut records a change and tries states of it, at most limit of them.
func cut(t *testing.T, c change, limit int, dropped ...string) (int, error) {
	t.Helper()
	s, err := prepared(c)
	require.NoError(t, err)
	before, disk := s.content(), leafOf(s.host)
	r := crash.Recording{Base: s.host.Clone()}
	for _, l := range dropped {
		s.host.DropSync(l)
	}
	s.host.Record()
	if c.late {
		require.NoError(t, s.write(rand.New(rand.NewPCG(6, 6))))
	}
	require.NoError(t, c.do(s))
	s.host.Ack("done", nil)
	r.Events = s.host.Events()
	after := s.content()
	require.NoError(t, shows(s.host, s.lib, after))
	var all int
	if err := r.Each(9, func(*crash.State) error { all++; return nil }); err != nil {
		return 0, err
	}
	every, n, tried := max(1, all/limit), 0, 0
	err = r.Each(9, func(st *crash.State) error {
		if n++; n%every != 0 && !c.late {
			return nil
		}
		h, err := st.Host()
		if err != nil {
			return err
		}
		may := []content{before, after}
		if st.At >= len(r.Events) {
			may = may[1:]
		} else if c.late {
			// From the commit on a flush is the new disk's alone.
			if leafOf(h) == disk {
				return nil
			}
			may = may[1:]
		}
		tried++
		if err := judge(h, may...); err != nil {
			return fmt.Errorf("%w\n%s", err, st)
		}
		return nil
	})
	return tried, err
}

// Each sync of a snapshot and an apply is needed: with it dropped some state is red.
func TestDroppedSyncsOfSetsAreSeen(t *testing.T) {
	for label, name := range map[string]string{
		"create.name": "second snapshot", "vhdx.create": "second snapshot", "vhds.body": "apply",
	} {
		t.Run(label, func(t *testing.T) {
			all := changes()
			c := all[slices.IndexFunc(all, func(c change) bool { return c.name == name })]
			_, err := cut(t, c, 1000, label)
			require.Error(t, err)
		})
	}
}

// TestSetsLosePower cuts each operation on a set: before or after, never between, and
// no file is left that nothing refers to.
func TestSetsLosePower(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n, err := cut(t, c, 12*sequences(t))
			require.NoError(t, err)
			t.Logf("%d states", n)
		})
	}
}
