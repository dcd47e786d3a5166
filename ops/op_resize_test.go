package ops_test

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// tables is a partition table as a test wants it.
type tables struct {
	layout ops.Layout
	err    error
	move   error
	ends   []int64 // of disks that MoveGPT was asked for
	looks  int
	onLook func()
}

func (t *tables) Layout(r io.ReaderAt, size int64, sector uint32) (*ops.Layout, error) {
	if _, err := r.ReadAt(make([]byte, sector), 0); err != nil {
		return nil, err
	}
	if t.looks++; t.onLook != nil {
		t.onLook()
	}
	l := t.layout
	return &l, t.err
}

func (t *tables) MoveGPT(d ops.GuestDisk, end int64, _ uint32) (bool, error) {
	if t.move != nil {
		return false, t.move
	}
	t.ends = append(t.ends, end)
	_, err := d.WriteAt([]byte("moved"), 0)
	return true, errors.Join(err, d.Flush())
}

// caches notes what the library asks of who keeps copies.
type caches struct {
	asked []string
	err   error
	size  func() int64 // of the image when it is asked
	sizes []int64
}

func (c *caches) note(what string) error {
	c.asked = append(c.asked, what)
	if c.size != nil {
		c.sizes = append(c.sizes, c.size())
	}
	return c.err
}

func (c *caches) Launder(ops.FileID) error  { return c.note("launder") }
func (c *caches) Replaced(ops.FileID) error { return c.note("replaced") }
func (c *caches) Resized(ops.FileID) error  { return c.note("resized") }

// tabled is a world whose disks have one partition table.
func tabled(t *testing.T, l ops.Layout) (*world, *tables, *caches) {
	w := newWorld(t)
	o := w.options()
	tab, c := &tables{layout: l}, &caches{}
	o.Tables = tab
	w.lib = ops.NewLibrary(o)
	w.lib.SetCaches(c)
	return w, tab, c
}

// value is a field of an answer, nil where it is not there.
func value(a ops.Answer, name string) any {
	for _, f := range a.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

const sec = 512

func TestResize(t *testing.T) {
	gpt := ops.Layout{MinInternalSize: 6 * sec, GPT: true, BackupAtEnd: true}
	mbr := ops.Layout{MinInternalSize: 6 * sec}
	none := ops.Layout{Unknown: "it has no partition table"}
	for _, tt := range []struct {
		name    string
		image   fakeImage // of 8 sectors
		layout  ops.Layout
		request string
		size    int64 // sectors afterwards
		asked   []string
		ends    []int64
		warning string
	}{
		{"grow", fakeImage{}, none, "16K", 32, []string{"resized"}, nil, ""},
		{"grow by", fakeImage{}, none, "size=+4K", 16, []string{"resized"}, nil, ""},
		{"grow to part of a sector", fakeImage{}, none, "size=4097", 9, []string{"resized"}, nil, ""},
		{"the service's name", fakeImage{}, none, "MaxInternalSize=8192", 16, []string{"resized"}, nil, ""},
		{"equal", fakeImage{}, none, "4K", 8, nil, nil, ""},
		{"equal but for part of a sector", fakeImage{}, none, "4095", 8, nil, nil, ""},
		{"by nothing", fakeImage{}, none, "+0", 8, nil, nil, ""},
		{"sectors of 4096", fakeImage{Sector: 4096}, none, "+1", 9 * 8, []string{"resized"}, nil, ""},
		{"shrink", fakeImage{}, mbr, "3584", 7, []string{"launder", "resized"}, nil, ""},
		{"shrink to the floor", fakeImage{}, mbr, "3072", 6, []string{"launder", "resized"}, nil, ""},
		{"min", fakeImage{}, mbr, "min", 6, []string{"launder", "resized"}, nil, ""},
		{"min of an odd floor", fakeImage{}, ops.Layout{MinInternalSize: 5*sec + 1}, "min", 6, []string{"launder", "resized"}, nil, ""},
		{"below the floor, unsafe", fakeImage{}, mbr, "512 unsafe=true", 1, []string{"launder", "resized"}, nil, ""},
		{"no table, unsafe", fakeImage{}, none, "512 unsafe=yes", 1, []string{"launder", "resized"}, nil, ""},
		{"grow a gpt", fakeImage{}, gpt, "8K", 16, []string{"resized"}, nil, "the backup GPT is not at the end of the disk"},
		{"shrink a gpt", fakeImage{}, gpt, "3584", 7, []string{"launder", "resized"}, nil, "the backup GPT is cut off"},
		{"grow and move", fakeImage{}, gpt, "8K movegpt=true", 16, []string{"launder", "replaced", "resized"}, []int64{8192}, ""},
		{"shrink and move", fakeImage{}, gpt, "min movegpt=1", 6, []string{"launder", "replaced", "resized"}, []int64{3072}, ""},
		{"move alone", fakeImage{}, gpt, "4K movegpt=1", 8, []string{"launder", "replaced"}, []int64{4096}, ""},
		{"fixed", fakeImage{Fixed: true}, none, "8K", 16, []string{"resized"}, nil, ""},
		{"a vhd", fakeImage{Magic: "fakev"}, none, "8K", 16, []string{"resized"}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, tab, c := tabled(t, tt.layout)
			tt.image.ID, tt.image.blocks = guid(1), map[int64]byte{0: 7, 5: 9}
			w.image("/vms/a.vhdx", tt.image)
			old := w.found("a.vhdx").Size
			c.size = func() int64 { return w.found("a.vhdx").Size }
			dry := w.ask("resize", "a.vhdx", tt.request+" dryrun=true")
			require.NoError(t, dry.Err)
			require.Equal(t, old, w.found("a.vhdx").Size, "a dry run")
			require.Equal(t, guid(1), w.found("a.vhdx").Info.LinkID.String())
			require.Empty(t, tab.ends)
			c.asked, c.sizes = nil, nil
			a := w.ask("resize", "a.vhdx", tt.request)
			require.NoError(t, a.Err)
			require.Equal(t, tt.size*sec, w.found("a.vhdx").Size)
			require.Equal(t, tt.size*sec, value(a, "MaxInternalSize"))
			require.Equal(t, value(a, "MaxInternalSize"), value(dry, "SizeAfter"))
			require.Equal(t, old, value(a, "SizeBefore"))
			require.Equal(t, tt.asked, c.asked)
			for i, what := range c.asked {
				if what == "resized" {
					require.Equal(t, tt.size*sec, c.sizes[i], "told when it has the size")
				}
			}
			require.Equal(t, tt.ends, tab.ends)
			if tt.warning == "" {
				require.Nil(t, value(a, "Warnings"))
			} else {
				require.Len(t, value(a, "Warnings"), 1)
				require.Contains(t, value(a, "Warnings").([]string)[0], tt.warning)
			}
		})
	}
}

// Every parameter that is wrong, and what its sentence names.
func TestResizeRefuses(t *testing.T) {
	gpt := ops.Layout{MinInternalSize: 6 * sec, GPT: true, BackupAtEnd: true}
	none := ops.Layout{Unknown: "it has no partition table"}
	full := ops.Layout{MinInternalSize: 8 * sec}
	vhd := fakeImage{Magic: "fakev"}
	for _, tt := range []struct {
		name    string
		image   fakeImage
		layout  ops.Layout
		request string
		errno   string
		ret     uint32
		status  uint32
		text    string
	}{
		{"nothing", fakeImage{}, gpt, "\n", "EINVAL", 32773, 0, "write 1 or run, or size=SIZE|min"},
		{"no size", fakeImage{}, gpt, "unsafe=true", "EINVAL", 32773, 0, "size is required"},
		{"run", fakeImage{}, gpt, "run", "EINVAL", 32773, 0, `size="run": bad argument`},
		{"no number", fakeImage{}, gpt, "size=big", "EINVAL", 32773, 0, `size="big"`},
		{"negative", fakeImage{}, gpt, "size=-1", "EINVAL", 32773, 0, `size="-1"`},
		{"hex", fakeImage{}, gpt, "size=0x1000", "EINVAL", 32773, 0, `size="0x1000"`},
		{"too long for a number", fakeImage{}, gpt, "size=9999999999T", "EINVAL", 32773, 0, "more than 9223372036854775807 bytes"},
		{"too long for sectors", fakeImage{}, gpt, "size=9223372036854775807", "EINVAL", 32773, 0xC03A0012, "9223372036854775807 bytes"},
		{"too much more", fakeImage{}, gpt, "size=+9223372036854775000", "EINVAL", 32773, 0xC03A0012, "more than the 4096 that /vms/a.vhdx has"},
		{"too long for the format", fakeImage{}, gpt, "size=1G", "EINVAL", 32773, 0xC03A0012, "1073741824 bytes, at most 1048576"},
		{"zero", fakeImage{}, gpt, "size=0 unsafe=true", "EINVAL", 32773, 0xC03A0012, "0 bytes are no disk"},
		{"one byte", fakeImage{}, gpt, "1", "EINVAL", 32773, 0xC03A0025, "512 bytes for /vms/a.vhdx, whose partitions need 3072"},
		{"below the floor", fakeImage{}, gpt, "size=2560", "EINVAL", 32773, 0xC03A0025, "2560 bytes for /vms/a.vhdx, whose partitions need 3072"},
		{"no table", fakeImage{}, none, "size=2560", "EINVAL", 32773, 0xC03A0026, "it has no partition table, so nothing says what would be cut off"},
		{"min without a table", fakeImage{}, none, "min", "EINVAL", 32773, 0xC03A0026, "it has no partition table"},
		{"min without a table, unsafe", fakeImage{}, none, "min unsafe=true", "EINVAL", 32773, 0xC03A0026, "it has no partition table"},
		{"min at the floor", fakeImage{}, full, "min", "EINVAL", 32773, 0xC03A0027, "size=min: /vms/a.vhdx has 4096 bytes, all of which its partitions need"},
		{"unsafe of what", fakeImage{}, gpt, "2560 unsafe=perhaps", "EINVAL", 32773, 0, `unsafe="perhaps"`},
		{"movegpt of what", fakeImage{}, gpt, "2560 movegpt=2", "EINVAL", 32773, 0, `movegpt="2"`},
		{"movegpt without a gpt", fakeImage{}, full, "8K movegpt=true", "EINVAL", 32773, 0, "movegpt: /vms/a.vhdx has no GPT that can be used"},
		{"unknown", fakeImage{}, gpt, "8K mode=full", "EINVAL", 32773, 0, `unknown argument "mode"`},
		{"twice", fakeImage{}, gpt, "8K size=9K", "EINVAL", 32773, 0, `argument "size" is given twice`},
		{"two lines", fakeImage{}, gpt, "8K\n9K", "EINVAL", 32773, 0, "two lines in one request"},
		{"a vhd that shrinks", vhd, gpt, "size=3584", "EOPNOTSUPP", 32770, 0xC03A001B, "does not shrink"},
		{"a vhd that shrinks, without a table", vhd, none, "size=3584", "EOPNOTSUPP", 32770, 0xC03A001B, "does not shrink"},
		{"a vhd that shrinks, unsafe", vhd, none, "size=3584 unsafe=true", "EOPNOTSUPP", 32770, 0xC03A001B, "does not shrink"},
		{"min of a vhd", vhd, none, "min", "EOPNOTSUPP", 32770, 0xC03A001B, "does not shrink"},
		{"read-only", fakeImage{ReadOnly: "the log is odd"}, gpt, "8K", "EROFS", 32768, 0, "/vms/a.vhdx: the log is odd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, tab, c := tabled(t, tt.layout)
			w.image("/vms/a.vhdx", tt.image)
			w.host.Freeze()
			for _, dry := range []string{"", " dryrun=true"} {
				a := w.ask("resize", "a.vhdx", tt.request+dry)
				if dry != "" && tt.request == "\n" {
					continue // no empty request any more
				}
				require.Error(t, a.Err)
				require.Equal(t, tt.errno, ops.Errno(a.Err))
				require.Equal(t, tt.ret, a.ReturnValue())
				require.Equal(t, ops.StatusCode(tt.status), ops.StatusOf(a.Err))
				require.Contains(t, a.Sentence(), tt.text)
			}
			require.Zero(t, w.host.Refused(), "nothing is written")
			require.Empty(t, tab.ends)
			require.NotContains(t, c.asked, "resized")
		})
	}
}

func TestResizeOfAChain(t *testing.T) {
	none := ops.Layout{Unknown: "it has no partition table"}
	t.Run("a parent", func(t *testing.T) {
		w, _, _ := tabled(t, none)
		w.line(2)
		a := w.ask("resize", "1.vhdx", "8K")
		require.Equal(t, "EROFS", ops.Errno(a.Err))
		require.Contains(t, a.Sentence(), "/vms/1.vhdx is the parent of /vms/2.vhdx")
	})
	t.Run("a child over a longer parent", func(t *testing.T) {
		w, _, _ := tabled(t, none)
		p := parent
		p.Size, p.blocks = 16*sec, map[int64]byte{1: 1, 10: 10, 15: 15}
		w.image("/vms/p.vhdx", p)
		w.image("/vms/c.vhdx", recorded("p.vhdx"))
		a := w.ask("resize", "c.vhdx", "+8K")
		require.NoError(t, a.Err)
		b, err := w.read("c.vhdx")
		require.NoError(t, err)
		require.Len(t, b, 24*sec)
		require.Equal(t, make([]byte, 16*sec), b[8*sec:], "zeros, not the parent's bytes")
	})
	t.Run("a child without its parent", func(t *testing.T) {
		w, _, _ := tabled(t, none)
		w.image("/vms/c.vhdx", recorded("p.vhdx"))
		require.Equal(t, "ENOLINK", ops.Errno(w.ask("resize", "c.vhdx", "8K").Err))
	})
	t.Run("a child that keeps its size", func(t *testing.T) {
		w, _, _ := tabled(t, none)
		p := parent
		p.Magic = "fakev"
		w.image("/vms/p.vhd", p)
		c := recorded("p.vhd")
		c.Magic = "fakev"
		w.image("/vms/c.vhd", c)
		a := w.ask("resize", "c.vhd", "8K")
		require.Equal(t, "EOPNOTSUPP", ops.Errno(a.Err))
		require.Equal(t, ops.StatusWrongType, ops.StatusOf(a.Err))
	})
}

// Guests go on, and see the size that the disk has.
func TestResizeBesideGuests(t *testing.T) {
	w, _, _ := tabled(t, ops.Layout{MinInternalSize: 6 * sec})
	w.line(1)
	g := w.open("1.vhdx", ops.Write)
	_, err := g.WriteAt([]byte("guest"), 7*sec)
	require.NoError(t, err)
	require.NoError(t, w.ask("resize", "1.vhdx", "8K").Err)
	require.Equal(t, int64(8192), g.Size())
	_, err = g.WriteAt([]byte("more"), 15*sec)
	require.NoError(t, err)
	require.NoError(t, w.ask("resize", "1.vhdx", "min").Err)
	require.Equal(t, int64(6*sec), g.Size())
	_, err = g.WriteAt([]byte("gone"), 7*sec)
	require.ErrorIs(t, err, ops.ErrPastEnd)
	require.NoError(t, w.ask("resize", "1.vhdx", "4K").Err)
	b := make([]byte, sec)
	_, err = g.ReadAt(b, 7*sec)
	require.NoError(t, err)
	require.Equal(t, make([]byte, sec), b, "what was cut off does not come back")
}

// A partition that appears between the first look and the cut is not cut off.
func TestResizeLooksAgain(t *testing.T) {
	w, tab, c := tabled(t, ops.Layout{MinInternalSize: 6 * sec})
	w.line(1)
	tab.onLook = func() {
		if tab.looks == 2 {
			tab.layout.MinInternalSize = 8 * sec
		}
	}
	a := w.ask("resize", "1.vhdx", "3072")
	require.Equal(t, ops.StatusTruncates, ops.StatusOf(a.Err))
	require.Equal(t, int64(8*sec), w.found("1.vhdx").Size)
	require.NotContains(t, c.asked, "resized")
}

// What fails on the way is told, and the disk has its old size.
func TestResizeThatFails(t *testing.T) {
	gpt := ops.Layout{MinInternalSize: 6 * sec, GPT: true, BackupAtEnd: true}
	t.Run("what programs wrote cannot be stored", func(t *testing.T) {
		w, _, c := tabled(t, gpt)
		w.line(1)
		c.err = syscall.ENOSPC
		require.ErrorIs(t, w.ask("resize", "1.vhdx", "min").Err, syscall.ENOSPC)
		require.Equal(t, int64(8*sec), w.found("1.vhdx").Size)
	})
	t.Run("the table cannot be read", func(t *testing.T) {
		w, tab, _ := tabled(t, gpt)
		w.line(1)
		tab.err = syscall.EIO
		require.ErrorIs(t, w.ask("resize", "1.vhdx", "min").Err, syscall.EIO)
		require.ErrorIs(t, w.ask("resize", "1.vhdx", "3584").Err, syscall.EIO)
		a := w.ask("resize", "1.vhdx", "8K")
		require.NoError(t, a.Err, "growing needs no table")
		require.Len(t, value(a, "Warnings"), 1)
	})
	t.Run("the table cannot be moved", func(t *testing.T) {
		w, tab, _ := tabled(t, gpt)
		w.line(1)
		tab.move = syscall.EIO
		a := w.ask("resize", "1.vhdx", "min movegpt=true")
		require.ErrorIs(t, a.Err, syscall.EIO)
		require.Equal(t, false, value(a, "MovedGPT"))
		require.Equal(t, int64(8*sec), w.found("1.vhdx").Size)
	})
	t.Run("nobody can be told", func(t *testing.T) {
		w, _, c := tabled(t, gpt)
		w.line(1)
		c.err = ops.Errorf(ops.ErrForbidden, 0, "loop0 keeps its size")
		a := w.ask("resize", "1.vhdx", "8K")
		require.NoError(t, a.Err, "the disk has its size all the same")
		require.Contains(t, value(a, "Warnings").([]string)[0], "loop0 keeps its size")
	})
	t.Run("cancelled", func(t *testing.T) {
		w, _, _ := tabled(t, gpt)
		w.line(1)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		o := op(t, "resize")
		args, err := o.Parse("8K")
		require.NoError(t, err)
		a := o.Do(ctx, &ops.Request{Library: w.lib, Image: w.lib.Top("1.vhdx"), Args: args})
		require.ErrorIs(t, a.Err, context.Canceled)
		require.Equal(t, int64(8*sec), w.found("1.vhdx").Size)
	})
	t.Run("no space for a fixed disk", func(t *testing.T) {
		w, _, _ := tabled(t, gpt)
		w.image("/vms/f.vhdx", fakeImage{Fixed: true})
		w.host.SetCapacity(64 << 10)
		a := w.ask("resize", "f.vhdx", "512K")
		require.ErrorIs(t, a.Err, syscall.ENOSPC)
		require.Contains(t, a.Sentence(), "/vms/f.vhdx needs 520192 bytes")
	})
}
