package set_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// on is a scene on what a crash left.
func on(h *sim.Host, leaf image) *scene {
	return &scene{host: h, lib: library(h), leaf: leaf, snaps: map[string]image{}, refs: map[string]bool{}, kept: map[string]bool{}}
}

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, n)) }

// made is an operation that makes the file of a set.
type made struct {
	name   string
	start  func(t *testing.T) *scene
	do     func(s *scene) error
	again  func(s *scene, names []string) error // where the set is not there, or broken
	judge  func(s *scene, names []string) error // in the end
	labels []string                             // syncs without which a state is wrong
}

// avhdx is the active disk of the only set.
func avhdx(names []string, of func(string) bool) string {
	i := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, ".avhdx") && of(n) })
	if i < 0 {
		return ""
	}
	return names[i]
}

func setMakers() []made {
	return []made{
		{
			name: "convert-to-set",
			start: func(t *testing.T) *scene {
				s, err := newScene()
				require.NoError(t, err)
				require.NoError(t, s.write(seeded(3)))
				require.NoError(t, s.close())
				require.NoError(t, s.ask("convert", setName, "path=p.vhdx block=1M"))
				names, err := s.names()
				require.NoError(t, err)
				for _, n := range names {
					if n != "p.vhdx" {
						require.NoError(t, s.host.Dir("/vms").Remove(n))
					}
				}
				require.NoError(t, s.host.Dir("/vms").Rename("p.vhdx", "d.vhdx"))
				return s
			},
			do: func(s *scene) error { return s.ask("convert-to-set", "d.vhdx", "") },
			again: func(s *scene, names []string) error {
				if len(names) != 1 { // the disk, by one name or the other
					return fmt.Errorf("no set, and %q", names)
				}
				return s.ask("convert-to-set", names[0], "")
			},
			judge: func(s *scene, names []string) error {
				if len(names) != 2 {
					return fmt.Errorf("%q, want the set and its disk", names)
				}
				return nil
			},
			labels: []string{"set.rename", "vhds.create"},
		},
		{
			name: "rebuild",
			start: func(t *testing.T) *scene {
				s, err := prepared(change{name: "second snapshot"})
				require.NoError(t, err)
				s.host.Bytes("/vms/"+setName).Write(0x30000, make([]byte, 0x8200))
				return s
			},
			do: func(s *scene) error { return s.ask("check", setName, "repair=true") },
			again: func(s *scene, names []string) error {
				if slices.Contains(names, setName) {
					return s.ask("check", setName, "repair=true")
				}
				parents := map[string]bool{}
				for _, n := range names {
					if links, err := s.lib.ChainOf(s.lib.Top(n)); err == nil && len(links) > 1 {
						parents[links[1].Ref.Name] = true
					}
				}
				return s.ask("convert-to-set", avhdx(names, func(n string) bool { return !parents[n] }), "")
			},
			judge: func(_ *scene, names []string) error {
				if !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, ".damaged-") }) {
					return fmt.Errorf("%q: the damaged file is gone", names)
				}
				return nil
			},
			labels: []string{"set.rebuild"},
		},
		{
			name:  "rebuild of a lost set",
			start: lost,
			do:    func(s *scene) error { return s.ask("create", ".", "path=d.vhds rebuild=true") },
			again: func(s *scene, names []string) error {
				if slices.Contains(names, setName) {
					return errors.New("a set that is not whole")
				}
				return s.ask("create", ".", "path=d.vhds rebuild=true")
			},
			judge: func(s *scene, names []string) error {
				found, err := s.lib.Inspect(s.lib.Top(setName))
				if err == nil && (len(names) != 4 || len(found.Set.Snapshots) != 2) {
					err = fmt.Errorf("%q with %d snapshots", names, len(found.Set.Snapshots))
				}
				return err
			},
		},
	}
}

// job cuts an operation: what it is about is a set that reads as before, or is made
// one by asking again.
func (m made) job(s *scene) crash.Job {
	want := s.leaf
	return crash.Job{
		Do: func(h *sim.Host) error {
			s := on(h, want)
			return errors.Join(m.do(s), s.lib.Close())
		},
		Judge: func(h *sim.Host, done bool) error {
			s := on(h, want)
			names, err := s.names()
			if err != nil {
				return err
			}
			if err := s.same(s.lib.Top(setName), want); err != nil {
				if done {
					return err
				}
				if e := m.again(s, names); e != nil {
					return fmt.Errorf("again: %w, after %w", e, err)
				}
			}
			if names, err = s.names(); err == nil {
				err = m.judge(s, names)
			}
			return errors.Join(err, s.same(s.lib.Top(setName), want), s.write(seeded(5)), s.same(s.lib.Top(setName), s.leaf), s.close(), s.lib.Close())
		},
	}
}

// A set's file is made, for a disk or anew, or the disks are there without it.
func TestSetFilesLosePower(t *testing.T) {
	for _, m := range setMakers() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := m.start(t)
			n, err := m.job(s).Run(s.host, crash.Options{Seed: 2, Limit: 10 * sequences(t), Deep: 10})
			require.NoError(t, err)
			t.Logf("%d states, %d of recoveries", n.States, n.Deep)
			for _, label := range m.labels {
				var v *crash.Violation
				_, err := m.job(s).Run(s.host, crash.Options{Seed: 2}, label)
				require.ErrorAs(t, err, &v, label)
				t.Logf("%s: %v", label, v.Err)
			}
		})
	}
}
