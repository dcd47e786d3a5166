// Package peers holds what has hurt other readers of these formats, a test for
// each trap, and comparisons with the readers that people have: qemu-img, 7-Zip
// and libvhdi, each where it is right.
package peers

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens an image of a folder through a library of its own.
func open(t *testing.T, dir, name string) *ops.Handle {
	t.Helper()
	l := folder.Open(t, dir)
	h, err := l.Open(l.Top(name), ops.Read)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// content is a whole small disk.
func content(t *testing.T, dir, name string) []byte {
	t.Helper()
	l := folder.Open(t, dir)
	h, err := l.Open(l.Top(name), ops.Read)
	require.NoError(t, err)
	p := make([]byte, h.Size())
	n, err := h.ReadAt(p, 0)
	if err != io.EOF {
		require.NoError(t, err)
	}
	require.Equal(t, len(p), n)
	require.NoError(t, h.Close())
	return p
}

// same compares disks without printing megabytes.
func same(t *testing.T, want, got []byte) {
	t.Helper()
	require.Equal(t, len(want), len(got))
	if bytes.Equal(want, got) {
		return
	}
	for at := 0; at < len(want); at += 512 {
		end := min(at+512, len(want))
		require.Equal(t, string(want[at:end]), string(got[at:end]), "at %#x", at)
	}
}

// model is a disk of zeros with these writes, of several layers in order.
func model(size int64, layers ...[]fixture.Write) []byte {
	p := make([]byte, size)
	for _, writes := range layers {
		for _, w := range writes {
			if w.Off < size {
				copy(p[w.Off:], w.Data)
			}
		}
	}
	return p
}

// fill is n bytes that say where they belong.
func fill(off, n int64, tag byte) fixture.Write {
	p := make([]byte, n)
	for i := range p {
		p[i] = tag ^ byte((off+int64(i))>>9) ^ byte(i*7) | 1
	}
	return fixture.Write{Off: off, Data: p}
}

// random are writes of whole units of a disk of size bytes.
func random(rng *rand.Rand, size, unit int64, count int, tag byte) []fixture.Write {
	var list []fixture.Write
	for range count {
		off := rng.Int64N(size/unit) * unit
		n := min(size-off, (1+rng.Int64N(40))*unit)
		list = append(list, fill(off, n, tag))
	}
	return list
}

// id is an id that a number stands for.
func id(n byte) [16]byte {
	return [16]byte{0xb0, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, n}
}

// linked makes a locator that names a VHDX parent by id and relative path.
func linked(parent byte, kv ...string) *fixture.Locator {
	l := &fixture.Locator{Entries: [][2]string{{"parent_linkage", fixture.GUIDText(id(parent))}}}
	for i := 0; i < len(kv); i += 2 {
		l.Entries = append(l.Entries, [2]string{kv[i], kv[i+1]})
	}
	return l
}

// linkedV is the same of a VHD, in both kinds of locator.
func linkedV(parent byte, name string) *fixture.VHDParent {
	return &fixture.VHDParent{UUID: id(parent), Name: name, Locators: []fixture.VHDLocator{
		{Code: "W2ku", Path: `C:\disks\` + name}, {Code: "W2ru", Path: `.\` + name},
	}}
}

// run runs a program of the machine and answers what it prints.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "%s %q: %s%s", name, args, out, errs.Bytes())
	return out
}

// sampled is how much of a long run of data is compared at its ends.
const sampled = 2 << 20

// sameAsRaw compares a disk with a raw file: all that the raw file stores, and
// of the disk's runs of data their ends.
func sameAsRaw(t *testing.T, h *ops.Handle, raw string) {
	t.Helper()
	st, err := os.Stat(raw)
	require.NoError(t, err)
	require.Equal(t, st.Size(), h.Size())
	buf := make([]byte, 256<<10)
	differ := func(off int64, want, got []byte) error {
		for i := range want {
			if want[i] != got[i] {
				return fmt.Errorf("at %#x: %#x, in the raw file %#x", off+int64(i), got[i], want[i])
			}
		}
		return nil
	}
	require.NoError(t, folder.EachExtent(raw, func(off int64, p []byte) error {
		n, err := h.ReadAt(buf[:len(p)], off)
		if n < len(p) {
			return err
		}
		if bytes.Equal(p, buf[:len(p)]) {
			return nil
		}
		return differ(off, p, buf)
	}))
	f, err := os.Open(raw)
	require.NoError(t, err)
	defer f.Close()
	want := make([]byte, len(buf))
	for at := int64(0); at < h.Size(); {
		e, err := h.Extent(at, h.Size()-at)
		require.NoError(t, err)
		for off := at; e.Kind == ops.Data && off < at+e.Len; off += int64(len(buf)) {
			if off-at > sampled && at+e.Len-off > 2*sampled {
				off = at + e.Len - sampled
			}
			n := min(int64(len(buf)), at+e.Len-off)
			_, err := h.ReadAt(buf[:n], off)
			if err != io.EOF {
				require.NoError(t, err)
			}
			_, err = f.ReadAt(want[:n], off)
			if err != io.EOF {
				require.NoError(t, err)
			}
			if !bytes.Equal(want[:n], buf[:n]) {
				require.NoError(t, differ(off, want[:n], buf[:n]))
			}
		}
		at += e.Len
	}
}
