package ops_test

import (
	"bytes"
	"context"
	"encoding/json"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

func texts(list []ops.Anomaly) []string {
	all := []string{}
	for _, a := range list {
		all = append(all, a.Text)
	}
	return all
}

// mends are the lines of an undo log that tell of what was mended.
func (w *world) mends(path string) []string {
	w.Helper()
	b, err := w.host.ReadFile(path)
	require.NoError(w, err)
	var all []string
	for line := range bytes.Lines(b) {
		var rec struct {
			Operation string
			Mends     *ops.Anomaly
		}
		if json.Unmarshal(line, &rec) == nil && rec.Mends != nil {
			require.Equal(w, "check", rec.Operation)
			all = append(all, rec.Mends.Text)
		}
	}
	return all
}

func TestCheckRepair(t *testing.T) {
	for _, tt := range []struct {
		name     string
		findings []string
		mended   []string
		left     []string
	}{
		{"all of it", []string{"mend a", "mend b"}, []string{"mend a", "mend b"}, []string{}},
		{"a part", []string{"torn", "mend b"}, []string{"mend b"}, []string{"torn"}},
		{"none", []string{"torn"}, []string{}, []string{"torn"}},
		{"nothing found", nil, []string{}, []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			im := recorded("gone.vhdx") // a parent that is missing does not keep it from being mended
			im.Findings, im.ReadOnly = tt.findings, "its log is empty"
			im.Parent = nil
			w.image("/vms/c.avhdx", im)
			before := w.host.Changes()
			a := w.ask("check", "c.avhdx", "repair=true dryrun=true")
			require.Equal(t, len(tt.findings) > 0, a.Err != nil)
			require.Equal(t, before, w.host.Changes())

			a = w.ask("check", "c.avhdx", "repair=true")
			require.Equal(t, tt.mended, texts(field(a, "Mended").([]ops.Anomaly)))
			require.Equal(t, tt.left, texts(field(a, "Left").([]ops.Report)[0].Anomalies))
			require.Len(t, reports(a)[0].Anomalies, len(tt.findings), "as it was found")
			if len(tt.left) > 0 {
				require.ErrorIs(t, a.Err, ops.ErrCorrupt)
			} else {
				require.NoError(t, a.Err)
			}
			if len(tt.mended) > 0 {
				require.Equal(t, tt.mended, w.mends(undoFile))
			} else {
				require.Equal(t, before, w.host.Changes(), "nothing is written")
			}
		})
	}
}

// What reads through a parent that is missing can be mended all the same; parents
// are not touched.
func TestCheckRepairMendsOneImage(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Findings: []string{"mend p"}})
	c := recorded("p.vhdx")
	c.Findings = []string{"mend c"}
	w.image("/vms/c.avhdx", c)
	a := w.ask("check", "c.avhdx", "repair=true")
	require.ErrorIs(t, a.Err, ops.ErrCorrupt)
	require.Equal(t, []string{"mend p"}, w.stored("/vms/p.vhdx").Findings)
	require.Equal(t, []string{"mend p"}, texts(field(a, "Left").([]ops.Report)[1].Anomalies))
	require.NoError(t, w.ask("check", "p.vhdx", "repair=true").Err, "a parent is mended under its own name")
	require.NoError(t, w.dirs["/vms"].Remove("p.vhdx"))
	c.Findings = []string{"mend again"}
	require.NoError(t, w.dirs["/vms"].Remove("c.avhdx"))
	w.image("/vms/c.avhdx", c)
	a = w.ask("check", "c.avhdx", "repair=true")
	require.Equal(t, []string{"mend again"}, texts(field(a, "Mended").([]ops.Anomaly)))
	require.ErrorContains(t, a.Err, "1 findings in 1 images")
}

// What the formats can mend, from the finding to a sound image that reads the same.
func TestCheckRepairOfRealImages(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		b          []byte
		found      string
		left       []string
	}{
		{"a footer's copy", "a.vhd", fixture.VHD{Size: 4 << 20, NoCopy: true}.Bytes(), "vhd.footer.copy", []string{}},
		{"the footer at the end", "a.vhd", fixture.VHD{Size: 4 << 20, NoTail: true}.Bytes(), "vhd.footer.end", []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := realWorld(t)
			w.put("/vms/"+tt.file, tt.b)
			before, err := w.read(tt.file)
			require.NoError(t, err)
			a := w.ask("check", tt.file, "repair=true")
			require.Contains(t, names(reports(a)[0]), tt.found)
			require.Equal(t, tt.left, names(field(a, "Left").([]ops.Report)[0]))
			require.Equal(t, len(tt.left) > 0, a.Err != nil)
			require.NotEmpty(t, w.mends("/vms/.vhdfs-state/"+tt.file+".undo"))
			after, err := w.read(tt.file)
			require.NoError(t, err)
			require.True(t, bytes.Equal(before, after))
		})
	}
}

// A change that could not be written down is not made.
func TestCheckRepairWritesDownFirst(t *testing.T) {
	for _, label := range []string{"undo.record", "fake.mend"} {
		t.Run(label, func(t *testing.T) {
			w := newWorld(t)
			w.image("/vms/c.avhdx", fakeImage{ID: guid(1), Findings: []string{"mend a", "mend b"}})
			n := 0
			w.host.SetFault(func(c sim.Call) error {
				if c.Label == label {
					if n++; n == 2 {
						return syscall.EIO
					}
				}
				return nil
			})
			a := w.ask("check", "c.avhdx", "repair=true")
			require.ErrorIs(t, a.Err, syscall.EIO)
			w.host.SetFault(nil)
			if label == "undo.record" {
				require.Equal(t, []string{"mend a"}, texts(field(a, "Mended").([]ops.Anomaly)))
				require.Equal(t, []string{"mend b"}, w.stored("/vms/c.avhdx").Findings)
			} else {
				require.Equal(t, []string{"mend a", "mend b"}, w.mends(undoFile))
			}
			require.NoError(t, w.ask("check", "c.avhdx", "repair=true").Err, "again")
		})
	}
}

func TestCheckRepairRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, image, request string
		open                 ops.Access
		errno                string
		code                 uint32
		text                 string
	}{
		{"unknown profile", "c.avhdx", "profile=mars", ops.Read, "EINVAL", 32773, `profile="mars": bad argument, want azure|windows`},
		{"no boolean", "c.avhdx", "repair=perhaps", ops.Read, "EINVAL", 32773, "want true or false"},
		{"open for reading", "c.avhdx", "repair=true", ops.Read, "EBUSY", 32774, "/vms/c.avhdx is open"},
		{"open for writing", "c.avhdx", "repair=true", ops.Write, "EBUSY", 32774, "/vms/c.avhdx is open"},
		{"open through a child", "p.vhdx", "repair=true", ops.Read, "EBUSY", 32774, "/vms/p.vhdx is the parent of an image that is open"},
		{"no such image", "none.vhdx", "repair=true", ops.Read, "ENOENT", 32779, "none.vhdx"},
		{"cannot be opened", "broken.vhdx", "repair=true", ops.Read, "EUCLEAN", 32768, "fake: torn"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Findings: []string{"mend p"}})
				c := recorded("p.vhdx")
				c.Findings = []string{"mend c"}
				w.image("/vms/c.avhdx", c)
				w.image("/vms/broken.vhdx", fakeImage{ID: guid(3), Broken: "torn"})
				w.open("c.avhdx", tt.open)
				before := w.host.Changes()
				a := w.ask("check", tt.image, tt.request)
				require.Equal(t, tt.errno, ops.Errno(a.Err), a.Sentence())
				require.Equal(t, tt.code, a.ReturnValue())
				require.ErrorContains(t, a.Err, tt.text)
				require.Equal(t, before, w.host.Changes())
			})
		})
	}
}

// A check of an image that is written looks at what its writer has, and does not
// open the file beside it.
func TestCheckLooksThroughTheWriter(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		t.Run(ext, func(t *testing.T) {
			w := realWorld(t)
			fixtureChain(w, ext, 2, 512)
			name := "2." + ext
			h := w.open(name, ops.Write)
			for i := range int64(7) { // new blocks, none of them flushed
				_, err := h.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 70_000), i<<20+512)
				require.NoError(t, err)
			}
			opened := len(w.host.Opened())
			a := w.ask("check", name, "run")
			require.NoError(t, a.Err)
			require.NotContains(t, w.host.Opened()[opened:], "/vms/"+name)
			require.NoError(t, w.do("validate", name).Err)
			require.NotContains(t, w.host.Opened()[opened:], "/vms/"+name)
			require.NoError(t, h.Close())
			require.NoError(t, w.ask("check", name, "run").Err)
			require.Contains(t, w.host.Opened()[opened:], "/vms/"+name)
		})
	}
}

// What a check saw of a file that was changed meanwhile is no finding.
func TestCheckBeginsAnewWhenTheFileIsWritten(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	looks := 0
	open := o.Formats[0].Open
	o.Formats[0].Open = func(f ops.File, oo ops.OpenOptions) (ops.Layer, error) {
		l, err := open(f, oo)
		if fake, ok := l.(*fakeLayer); ok {
			return &restless{fake, w, &looks}, err
		}
		return l, err
	}
	w.lib = ops.NewLibrary(o)
	w.image("/vms/a.vhdx", fakeImage{ID: guid(1)})
	a := w.ask("check", "a.vhdx", "run")
	require.NoError(t, a.Err)
	require.Equal(t, 2, looks)
}

// restless is a layer that finds something the first time, because a writer comes
// just then.
type restless struct {
	*fakeLayer
	w     *world
	looks *int
}

func (r *restless) Check(_ context.Context, report func(ops.Anomaly)) error {
	if *r.looks++; *r.looks == 1 {
		h, err := r.w.lib.Open(r.w.lib.Top("a.vhdx"), ops.Write)
		require.NoError(r.w, err)
		_, err = h.WriteAt(make([]byte, 512), 0)
		require.NoError(r.w, err)
		require.NoError(r.w, h.Close())
		report(fakeFinding("half of a change"))
	}
	return nil
}
