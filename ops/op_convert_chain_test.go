package ops_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// copied is the field Disks of an answer.
type copied []struct {
	Path, Source string
	Snapshots    []string
}

func disksOf(t *testing.T, a ops.Answer) (list copied) {
	t.Helper()
	b, err := json.Marshal(field(a, "Disks"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &list))
	return list
}

func name(hostPath string) string { return hostPath[len("/vms/"):] }

// Every disk of the copy reads as its original, and finds its parent by its relative
// path, wherever the folder is moved to.
func TestConvertChain(t *testing.T) {
	for _, tt := range []struct {
		source, request, leaf string
		typ                   ops.Type
		block                 uint32
	}{
		{"3.vhdx", "path=n type=chain", "n/3.vhdx", ops.Dynamic, mib},
		{"3.vhdx", "n type=chain block=2M", "n/3.vhdx", ops.Dynamic, 2 * mib},
		{"3.vhdx", "path=n type=chain format=vhd", "n/3.vhd", ops.Dynamic, 2 * mib},
		{"3.vhd", "path=n type=chain", "n/3.vhd", ops.Dynamic, 2 * mib},
		{"3.vhd", "path=n type=chain format=vhdx", "n/3.vhdx", ops.Dynamic, 0},
		{"1.vhd", "path=n type=chain format=vhdx", "n/1.vhdx", ops.Dynamic, 32 * mib},
	} {
		t.Run(tt.source+" "+tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 3, 512)
			fixtureChain(w, "vhd", 3, 512)
			a := w.ask("convert", tt.source, tt.request)
			require.NoError(t, a.Err)
			require.Equal(t, "/vms/"+tt.leaf, field(a, "Path"))
			list := disksOf(t, a)
			require.NoError(t, w.host.Dir("/vms").Rename("n", "moved"))
			for i, d := range list {
				moved := "moved" + name(d.Path)[1:]
				require.True(t, bytes.Equal(readAll(t, w, name(d.Source)), readAll(t, w, moved)), d.Path)
				require.NoError(t, w.do("check", moved).Err)
				f := w.found(moved)
				if tt.block != 0 {
					require.Equal(t, tt.block, f.Info.BlockSize)
				}
				if i == len(list)-1 {
					require.Equal(t, tt.typ, f.Info.Type)
					continue
				}
				links, err := w.lib.ChainOf(w.lib.Top(moved))
				require.NoError(t, err)
				require.Len(t, links, len(list)-i)
				require.Equal(t, ops.RuleRelative, links[1].Rule)
				require.NoError(t, links[len(links)-1].Err)
			}
			require.NotContains(t, w.hostNames("/vms"), ops.StateDir)
			require.NotContains(t, w.hostNames("/vms/moved"), ops.StateDir)
			h := w.open("moved"+name(list[0].Path)[1:], ops.Write) // the originals are nobody's parents by that
			_, err := h.WriteAt([]byte{1}, 5)
			require.NoError(t, errors.Join(err, h.Close()))
			if len(list) > 1 {
				h = w.open(tt.source, ops.Write)
				require.NoError(t, h.Close())
			}
		})
	}
}

// layered is a set with snapshots a and b below its disk, and k beside them.
func layered(t *testing.T, w *world) {
	for _, r := range [][3]string{
		{"create", ".", "path=d.vhds block=1M size=4M"}, {"write", "1"}, {"snapshot", "d.vhds", "a"}, {"write", "2"},
		{"snapshot", "d.vhds", "k"}, {"apply", "d.vhds", "a"}, {"write", "3"}, {"snapshot", "d.vhds", "b"}, {"write", "4"}, {"snapshot", "d.vhds", "c"}, {"write", "5"},
		{"delete", "d.vhds", "c"},
	} {
		if r[0] != "write" {
			require.NoError(t, w.ask(r[0], r[1], r[2]).Err, r)
			continue
		}
		h := w.open("d.vhds", ops.Write)
		_, err := h.WriteAt(bytes.Repeat([]byte(r[1]), mib), int64(r[1][0]-'0')*mib/2)
		require.NoError(t, errors.Join(err, h.Close()))
	}
}

// A set becomes a chain that needs no set; states that are beside the chain are told.
func TestConvertSetToChain(t *testing.T) {
	for _, format := range []string{"vhdx", "vhd"} {
		w := makingWorld(t)
		layered(t, w)
		a := w.ask("convert", "d.vhds", "path=n type=chain format="+format)
		require.NoError(t, a.Err)
		list := disksOf(t, a)
		require.Len(t, list, 4)
		require.Equal(t, "/vms/n/d."+format, list[0].Path)
		require.True(t, bytes.Equal(readAll(t, w, "d.vhds"), readAll(t, w, "n/d."+format)))
		for i, want := range [][]string{nil, nil, {"b"}, {"a"}} {
			require.Equal(t, want, list[i].Snapshots)
			require.True(t, bytes.Equal(readAll(t, w, name(list[i].Source)), readAll(t, w, name(list[i].Path))))
			require.NoError(t, w.do("check", name(list[i].Path)).Err)
		}
		require.Equal(t, []string{"k"}, field(a, "NotCopied"))
		require.NoError(t, w.ask("merge", "n/d."+format, "into="+name(list[3].Path)).Err, "plain disks")
	}
}

// Two parents of one name in two folders are two files.
func TestConvertChainOfLikeNames(t *testing.T) {
	w := makingWorld(t)
	require.NoError(t, w.host.Dir("/vms").Mkdir("old", 0o700))
	require.NoError(t, w.ask("create", ".", "path=old/a.vhdx size=8M type=fixed").Err)
	require.NoError(t, w.ask("create", ".", "path=A.vhdx parent=old/a.vhdx").Err)
	require.NoError(t, w.ask("create", ".", "path=old/b.avhdx parent=A.vhdx").Err)
	a := w.ask("convert", "old/b.avhdx", "path=n type=chain format=vhd id=11111111-2222-3333-4444-555555555555")
	require.NoError(t, a.Err)
	list := disksOf(t, a)
	require.Equal(t, []string{"/vms/n/b.avhd", "/vms/n/A.vhd", "/vms/n/a-1.vhd"}, []string{list[0].Path, list[1].Path, list[2].Path})
	root := w.found("n/a-1.vhd").Info
	require.Equal(t, ops.Fixed, root.Type)
	require.Equal(t, "11111111-2222-3333-4444-555555555555", root.DiskID.String())
}

func TestConvertChainRefuses(t *testing.T) {
	for _, tt := range []struct {
		image, request string
		class          error
		text           string
	}{
		{"2.vhdx", "path=n.vhdx", ops.ErrUsage, "it is the folder that is made"},
		{"2.vhdx", "path=old", iofs.ErrExist, "nothing is ever overwritten"},
		{"2.vhdx", "path=none/n", iofs.ErrNotExist, ""},
		{"2.vhdx", "path=n parent=1.vhdx", ops.ErrUsage, "ParentPath with type=chain"},
		{"2.vhdx", "path=n size=16M", ops.ErrUsage, "MaxInternalSize with type=chain"},
		{"2.vhdx", "path=n format=raw", ops.ErrUsage, "want vhd or vhdx"},
		{"2.vhdx", "path=n format=vhds", ops.ErrUsage, "want vhd or vhdx"},
		{"2.vhdx", "path=n block=3M", ops.ErrUsage, "block size 3145728"},
		{"3.vhdx", "path=n format=vhd", ops.ErrUsage, "disks of a VHD chain are all as large"},
		{"f.vfd", "path=n", errors.ErrUnsupported, "has no chain"},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 2, 512)
			require.NoError(t, w.ask("create", ".", "path=3.vhdx parent=2.vhdx size=16M").Err)
			require.NoError(t, w.ask("create-floppy", ".", "path=f.vfd").Err)
			require.NoError(t, w.host.Dir("/vms").Mkdir("old", 0o700))
			before := w.hostNames("/vms")
			a := w.ask("convert", tt.image, tt.request+" type=chain")
			require.ErrorIs(t, a.Err, tt.class)
			require.ErrorContains(t, a.Err, tt.text)
			require.Equal(t, before, w.hostNames("/vms"))
			h := w.open("3.vhdx", ops.Write) // nobody keeps it
			require.NoError(t, h.Close())
		})
	}
}

// Space for all disks is asked for first. The dry run says how much, and a host that
// has it not is left as it was; so is one that fails, or is left, half way.
func TestConvertChainStops(t *testing.T) {
	w := makingWorld(t)
	layered(t, w)
	plan := w.ask("convert", "d.vhds", "path=n type=chain dryrun=true")
	require.NoError(t, plan.Err)
	need := field(plan, "SpaceNeeded").(int64)
	require.Len(t, field(plan, "Makes"), 4)
	before := w.hostNames("/vms")
	w.host.SetCapacity(w.host.Used() + need - 1)
	a := w.ask("convert", "d.vhds", "path=n type=chain")
	require.ErrorIs(t, a.Err, syscall.ENOSPC)
	require.ErrorContains(t, a.Err, fmt.Sprintf("/vms/n needs %d bytes, the host has %d left", need, need-1))
	require.Equal(t, before, w.hostNames("/vms"))
	w.host.SetCapacity(0)

	o := op(t, "convert")
	args, err := o.Parse("path=n type=chain")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	a = o.Do(ctx, &ops.Request{Library: w.lib, Image: w.lib.Top("d.vhds"), Args: args, Progress: func(done, all int64) {
		require.EqualValues(t, 16*mib, all)
		if done >= 10*mib {
			cancel()
		}
	}})
	require.ErrorIs(t, a.Err, context.Canceled)
	require.Equal(t, before, w.hostNames("/vms"))

	var counted atomic.Int64 // several workers copy
	w.host.SetFault(func(sim.Call) error { counted.Add(1); return nil })
	require.NoError(t, w.ask("convert", "d.vhds", "path=all type=chain").Err)
	calls := counted.Load()
	for k := int64(1); k < calls; k += max(1, calls/60) {
		var n atomic.Int64
		w.host.SetFault(func(c sim.Call) error {
			if n.Add(1) == k && c.Op != sim.OpClose {
				return syscall.EIO
			}
			return nil
		})
		a := w.ask("convert", "d.vhds", "path=n type=chain")
		w.host.SetFault(nil)
		if _, err := w.host.Dir("/vms").Stat("n"); a.Err != nil && err == nil { // the last sync alone
			require.True(t, bytes.Equal(readAll(t, w, "d.vhds"), readAll(t, w, "n/d.vhdx")), k)
			require.NoError(t, w.host.Dir("/vms").Rename("n", fmt.Sprint("n", k)))
		} else if a.Err == nil {
			require.NoError(t, w.host.Dir("/vms").Rename("n", fmt.Sprint("n", k)))
		}
	}
	require.NoError(t, w.ask("create", ".", "path=last.vhdx size=4M").Err, "takes leftovers away")
	require.NotContains(t, w.hostNames("/vms"), ops.StateDir)
}

// chainJob copies a set's chain. Wherever the power goes there is the whole folder,
// or none and nothing that stays in the way.
func chainJob(t *testing.T) (*sim.Host, crash.Job) {
	w := makingWorld(t)
	layered(t, w)
	want := readAll(t, w, "d.vhds")
	convert := func(h *sim.Host) (*world, error) {
		w := afterwards(t, h)
		err := w.ask("convert", "d.vhds", "path=n type=chain").Err
		return w, errors.Join(err, w.lib.Close())
	}
	return w.host.Clone(), crash.Job{
		Do: func(h *sim.Host) error { _, err := convert(h); return err },
		Judge: func(h *sim.Host, done bool) error {
			_, err := h.Dir("/vms").Stat("n")
			if errors.Is(err, iofs.ErrNotExist) && !done {
				_, err = convert(h)
			}
			if err != nil {
				return err
			}
			w := afterwards(t, h)
			for _, at := range []string{"n/d.vhdx", "d.vhds"} {
				f, err := w.lib.Open(w.lib.Top(at), ops.Read)
				if err != nil {
					return err
				}
				got := make([]byte, len(want))
				if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(want, got) {
					return fmt.Errorf("%s reads otherwise: %w", at, err)
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
			// What a file that is made next does not sweep stays for ever.
			if err := w.ask("create", ".", "path="+ops.NewGUID().String()+".vhdx size=4M").Err; err != nil {
				return err
			}
			if list := w.hostNames("/vms"); bytes.Contains([]byte(fmt.Sprint(list)), []byte(ops.StateDir)) {
				left, _ := h.Dir("/vms/" + ops.StateDir).List(".")
				return fmt.Errorf("left: %v", left)
			}
			return w.lib.Close()
		},
	}
}

func afterwards(t *testing.T, h *sim.Host) *world {
	w := worldOn(t, h)
	o := w.options()
	o.Formats = []*ops.Format{vhd.Format, vhdx.Format, vhdx.SetFormat}
	w.lib = ops.NewLibrary(o)
	return w
}

func TestPowerCutsOfCopiedChains(t *testing.T) {
	start, job := chainJob(t)
	n, err := job.Run(start, crash.Options{Seed: 1, Limit: 100, Deep: 30})
	require.NoError(t, err)
	t.Logf("%d states, %d of recoveries", n.States, n.Deep)
}

func TestEverySyncOfACopiedChainIsNeeded(t *testing.T) {
	start, job := chainJob(t)
	for _, label := range []string{"chain.disks", "chain.name"} {
		r, _, err := job.Record(start, label)
		require.NoError(t, err)
		_, err = job.Run(start, crash.Options{Seed: 1, Limit: 100, After: len(r.Events) - 8}, label)
		var v *crash.Violation
		require.ErrorAs(t, err, &v, label)
		t.Logf("%s: %v", label, v.Err)
	}
}
