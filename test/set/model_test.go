// Package set_test runs sets with snapshots against a model in memory.
package set_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"

	"vhdfs/ops"
	"vhdfs/test/budget"
	"vhdfs/test/sim"
	"vhdfs/vhdx"
)

const (
	diskSize = 3 << 20
	setName  = "d.vhds"
)

var formats = []*ops.Format{vhdx.Format, vhdx.SetFormat}

func library(h *sim.Host) *ops.Library {
	return ops.NewLibrary(ops.LibraryOptions{Top: h.Dir("/vms"), Formats: formats})
}

// scene is a set with what it should hold.
type scene struct {
	host  *sim.Host
	lib   *ops.Library
	disk  *ops.Handle // of a guest that writes; nil without one
	leaf  image
	snaps map[string]image // by label
	refs  map[string]bool  // labels of references without data
	kept  map[string]bool  // labels of writeable ones
	made  int
	trace []string
}

// empty is a host with a new set.
var empty = sync.OnceValues(func() (*sim.Host, error) {
	s := on(sim.New(), image{})
	return s.host, s.ask("create", ".", "path=d.vhds block=1M size="+strconv.Itoa(diskSize))
})

func newScene() (*scene, error) {
	h, err := empty()
	return on(h.Clone(), image{}.resized(diskSize)), err
}

// ask runs an operation.
func (s *scene) ask(name, image, request string) error {
	_, err := s.answer(name, image, request)
	return err
}

func (s *scene) answer(name, image, request string) (ops.Answer, error) {
	s.trace = append(s.trace, name+" "+request)
	op := ops.All[slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == name })]
	args, err := op.Parse(request)
	if err != nil {
		return ops.Answer{}, err
	}
	a := op.Do(context.Background(), &ops.Request{Library: s.lib, Image: s.lib.Top(image), Args: args})
	return a, a.Err
}

func (s *scene) open() error {
	if s.disk != nil {
		return nil
	}
	var err error
	s.disk, err = s.lib.Open(s.lib.Top(setName), ops.Write)
	return err
}

func (s *scene) close() error {
	if s.disk == nil {
		return nil
	}
	err := s.disk.Close()
	s.disk = nil
	return err
}

func (s *scene) write(rng *rand.Rand) error {
	if err := s.open(); err != nil {
		return err
	}
	n := (rng.Int64N(300) + 1) * 512
	off := rng.Int64N((s.leaf.size-n)/512) * 512
	b := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, int(n))
	s.trace = append(s.trace, fmt.Sprintf("write %d at %d", n, off))
	if rng.IntN(4) == 0 {
		clear(b)
		s.leaf = s.leaf.with(off, b)
		return s.disk.Zero(off, n, rng.IntN(2) == 0)
	}
	s.leaf = s.leaf.with(off, b)
	_, err := s.disk.WriteAt(b, off)
	return err
}

func (s *scene) resize(size int64) error {
	s.leaf = s.leaf.resized(size)
	return s.ask("resize", setName, fmt.Sprintf("size=%d unsafe=true", size))
}

// labels are those of snapshots, references too if asked.
func (s *scene) labels(refs bool) []string {
	var list []string
	for l := range s.snaps {
		list = append(list, l)
	}
	for l := range s.refs {
		if refs {
			list = append(list, l)
		}
	}
	slices.Sort(list)
	return list
}

func (s *scene) newLabel() string { s.made++; return fmt.Sprintf("s%d", s.made) }

// step does one random thing.
func (s *scene) step(rng *rand.Rand) error {
	labels := s.labels(false)
	switch n := rng.IntN(20); {
	case n < 1:
		return s.resize(diskSize + rng.Int64N(3)<<19)
	case n < 8:
		return s.write(rng)
	case n < 9 && s.disk != nil:
		return s.disk.Flush()
	case n < 13 && len(s.snaps)+len(s.refs) < 40:
		l := s.newLabel()
		if err := s.ask("snapshot", setName, l); err != nil {
			return err
		}
		s.snaps[l] = s.leaf
	case n < 15 && len(labels) > 0:
		l := labels[rng.IntN(len(labels))]
		if err := s.close(); err != nil {
			return err
		}
		if rng.IntN(2) == 0 {
			keep := s.newLabel()
			if err := s.ask("apply", setName, fmt.Sprintf("snapshot=%s keep=%s", l, keep)); err != nil {
				return err
			}
			s.snaps[keep], s.kept[keep] = s.leaf, true
		} else if err := s.ask("apply", setName, l); err != nil {
			return err
		}
		s.leaf = s.snaps[l]
	case n < 17 && len(labels) > 0:
		return s.remove(rng)
	case n < 18:
		return s.ask("optimize", setName, "")
	case n < 20:
		if err := s.close(); err != nil {
			return err
		}
		if rng.IntN(3) == 0 {
			err := s.lib.Close()
			s.lib = library(s.host)
			return err
		}
	}
	return nil
}

func (s *scene) remove(rng *rand.Rand) error {
	labels := s.labels(true)
	l := labels[rng.IntN(len(labels))]
	_, data := s.snaps[l]
	persist := data && !s.kept[l] && rng.IntN(4) == 0
	if err := s.ask("delete", setName, fmt.Sprintf("snapshot=%s persist=%t", l, persist)); err != nil {
		return err
	}
	delete(s.snaps, l)
	delete(s.refs, l)
	if persist {
		s.refs[l] = true
	}
	return nil
}

func all(h *ops.Handle) ([]byte, error) {
	b := make([]byte, h.Size())
	n, err := h.ReadAt(b, 0)
	if err == io.EOF && n == len(b) {
		err = nil
	}
	return b, err
}

// check compares the disk and every snapshot with the model. What was compared stays
// open until all was: most states share most of their files.
func (s *scene) check() (err error) {
	var open []*ops.Handle
	defer func() {
		for _, h := range open {
			err = errors.Join(err, h.Close())
		}
	}()
	compare := func(r ops.Ref, want image) error {
		h, err := s.lib.Open(r, ops.Read)
		if err != nil {
			return err
		}
		open = append(open, h)
		return reads(h, want)
	}
	found, err := s.lib.Inspect(s.lib.Top(setName))
	if err == nil {
		err = found.Err
	}
	if err != nil {
		return err
	}
	if len(found.Set.Snapshots) != len(s.snaps)+len(s.refs) {
		return fmt.Errorf("%d snapshots, want %d and %d", len(found.Set.Snapshots), len(s.snaps), len(s.refs))
	}
	if err := compare(s.lib.Top(setName), s.leaf); err != nil {
		return fmt.Errorf("the disk: %w", err)
	}
	for _, n := range found.Set.Snapshots {
		if n.Path == "" {
			continue
		}
		if err := compare(s.lib.Top(n.Path), s.snaps[n.Label]); err != nil {
			return fmt.Errorf("snapshot %s: %w", n.Label, err)
		}
	}
	return nil
}

func (s *scene) same(r ops.Ref, want image) error {
	h, err := s.lib.Open(r, ops.Read)
	if err != nil {
		return err
	}
	err = reads(h, want)
	if err != nil {
		err = fmt.Errorf("%s: %w", r.Path(), err)
	}
	if e := h.Close(); err == nil {
		err = e
	}
	return err
}

func sequences(t *testing.T) int { return budget.Of(t, 12, 300) }

const length = 40 // steps of a sequence

// TestRandomSets does random things to sets; after each the disk and every snapshot
// read as the model says, and in the end the set can be taken apart without a rest.
func TestRandomSets(t *testing.T) {
	run := budget.Start(t, "sets", "sequences", "steps")
	const threads = 2
	for first := range uint64(threads) {
		t.Run(strconv.FormatUint(first, 10), func(t *testing.T) {
			t.Parallel()
			for n := first; n < uint64(sequences(t)); n += threads {
				seed := run.Seed() + n
				if s, err := randomSet(seed); err != nil {
					t.Fatalf("seed %d: %v\n%q", seed, run.Broken(err), s.trace)
				}
				run.Add("sequences", 1)
				run.Add("steps", length)
			}
		})
	}
}

func randomSet(seed uint64) (s *scene, err error) {
	rng := rand.New(rand.NewPCG(seed, 77))
	if s, err = newScene(); err != nil {
		return s, err
	}
	for range length {
		if err := s.step(rng); err != nil {
			return s, err
		}
		if err := s.check(); err != nil {
			return s, err
		}
	}
	return s, errors.Join(s.takenApart(seed%2 == 0), s.lib.Close())
}

// takenApart deletes every snapshot and optimizes, with a guest that has the disk open
// or without: one disk is left, and the set is as a new one.
func (s *scene) takenApart(open bool) error {
	if err := s.open(); err != nil {
		return err
	}
	if !open {
		if err := s.close(); err != nil {
			return err
		}
	}
	for _, l := range s.labels(true) {
		if err := s.ask("delete", setName, l); err != nil {
			return err
		}
	}
	s.snaps, s.refs = map[string]image{}, map[string]bool{}
	a, err := s.answer("optimize", setName, "")
	if err != nil {
		return err
	}
	if err := errors.Join(s.check(), s.close()); err != nil {
		return err
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	b, err := s.host.ReadFile("/vms/" + setName)
	if len(names) != 2 || len(b) != 266240 || string(b[:8]) != "vhdsetv1" {
		return fmt.Errorf("left: %q, a set of %d bytes, %q; %+v; %w", names, len(b), b[:8], a.Fields, err)
	}
	return s.check()
}

func (s *scene) names() ([]string, error) {
	list, err := s.host.Dir("/vms").List(".")
	var names []string
	for _, e := range list {
		if e.Name != ops.StateDir { // empty, after a crash: the next file that is made takes it away
			names = append(names, e.Name)
		}
	}
	return names, err
}
