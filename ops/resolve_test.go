package ops_test

import (
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// recorded makes the image of a child whose parent has id 1.
func recorded(paths ...string) fakeImage {
	im := fakeImage{ID: guid(100), Parent: []string{guid(1)}}
	for _, p := range paths {
		im.Paths = append(im.Paths, fakePath{ops.PathRelative, p})
	}
	return im
}

var parent = fakeImage{ID: guid(1), blocks: map[int64]byte{3: 7}}

// TestResolve stores a child at /vms/sub/c.avhdx that records paths, and files
// that could be its parent.
func TestResolve(t *testing.T) {
	other := fakeImage{ID: guid(2)}
	for _, tt := range []struct {
		name   string
		paths  []string
		files  map[string]fakeImage
		rule   ops.Rule
		want   string // path of the parent; "": none
		err    error
		text   string
		passed []string // "rule path: why", parts of them
	}{
		{name: "in the same folder", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": parent}, rule: ops.RuleRelative, want: "/vms/sub/p.vhdx"},
		{name: "in a sibling folder", paths: []string{`..\base\p.vhdx`},
			files: map[string]fakeImage{"/vms/base/p.vhdx": parent}, rule: ops.RuleRelative, want: "/vms/base/p.vhdx"},
		{name: "relative path in an absolute field", paths: []string{`../p.vhdx`},
			files: map[string]fakeImage{"/vms/p.vhdx": parent}, rule: ops.RuleRelative, want: "/vms/p.vhdx"},
		{name: "moved beside the child", paths: []string{`..\base\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": parent}, rule: ops.RuleName, want: "/vms/sub/p.vhdx"},
		{name: "wrong extension for its format", paths: []string{`.\p.vhd`},
			files: map[string]fakeImage{"/vms/sub/p.vhd": parent}, rule: ops.RuleRelative, want: "/vms/sub/p.vhd"},
		{name: "in another case", paths: []string{`..\Base\P.VHDX`},
			files: map[string]fakeImage{"/vms/base/p.vhdx": parent}, rule: ops.RuleFolded, want: "/vms/base/p.vhdx"},
		{name: "beside, in another case", paths: []string{`D:\x\P.VHDX`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": parent}, rule: ops.RuleFolded, want: "/vms/sub/p.vhdx"},
		{name: "the exact case wins", paths: []string{`.\P.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": parent, "/vms/sub/P.vhdx": parent},
			rule:  ops.RuleRelative, want: "/vms/sub/P.vhdx"},
		{name: "two other cases, one with the id", paths: []string{`.\P.VHDX`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": other, "/vms/sub/P.vhdx": parent},
			rule:  ops.RuleFolded, want: "/vms/sub/P.vhdx", passed: []string{"case-folded /vms/sub/p.vhdx: has another id"}},
		{name: "two other cases, both with the id", paths: []string{`.\P.VHDX`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": parent, "/vms/sub/P.vhdx": parent},
			err:   ops.ErrParentMissing, text: `2 files have the recorded id 00000001-0000-4000-8000-000000000000, none is taken: "/vms/sub/P.vhdx", "/vms/sub/p.vhdx"`},
		{name: "behind a drive letter", paths: []string{`C:\Hyper-V\base\p.vhdx`},
			files: map[string]fakeImage{"/vms/base/p.vhdx": parent}, rule: ops.RuleSuffix, want: "/vms/base/p.vhdx"},
		{name: "behind a drive letter, in another case", paths: []string{`C:\Hyper-V\BASE\P.vhdx`},
			files: map[string]fakeImage{"/vms/base/p.vhdx": parent}, rule: ops.RuleSuffix, want: "/vms/base/p.vhdx"},
		{name: "behind a UNC path", paths: []string{`\\srv\vms\base\p.vhdx`},
			files: map[string]fakeImage{"/vms/vms/base/p.vhdx": parent}, rule: ops.RuleSuffix, want: "/vms/vms/base/p.vhdx"},
		{name: "behind a volume path", paths: []string{`\\?\Volume{6dc6e4b5-1a2b-4c3d-8e9f-aabbccddeeff}\base\p.vhdx`},
			files: map[string]fakeImage{"/vms/base/p.vhdx": parent}, rule: ops.RuleSuffix, want: "/vms/base/p.vhdx"},
		{name: "the longest suffix wins", paths: []string{`C:\a\b\p.vhdx`},
			files: map[string]fakeImage{"/vms/a/b/p.vhdx": parent, "/vms/b/p.vhdx": parent, "/vms/p.vhdx": parent},
			rule:  ops.RuleSuffix, want: "/vms/a/b/p.vhdx"},
		{name: "behind a drive letter, the exact case wins", paths: []string{`C:\b\P.vhdx`},
			files: map[string]fakeImage{"/vms/b/p.vhdx": parent, "/vms/b/P.vhdx": parent},
			rule:  ops.RuleSuffix, want: "/vms/b/P.vhdx"},
		{name: "suffix in our own state folder", paths: []string{`C:\.vhdfs-state\p.vhdx`},
			files: map[string]fakeImage{"/vms/.vhdfs-state/p.vhdx": parent}, err: ops.ErrParentMissing},
		{name: "suffix in a search folder", paths: []string{`C:\a\p.vhdx`},
			files: map[string]fakeImage{"/search/a/p.vhdx": parent}, rule: ops.RuleSuffix, want: "/search/a/p.vhdx"},
		{name: "renamed", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/else/q.vhdx": parent}, rule: ops.RuleID, want: "/vms/else/q.vhdx"},
		{name: "renamed in a search folder", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/search/x/q.vhdx": parent}, rule: ops.RuleID, want: "/search/x/q.vhdx"},
		{name: "not by id in an allowed folder", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/allow/q.vhdx": parent}, err: ops.ErrParentMissing, text: `no image with id 00000001-`},
		{name: "absolute path in an allowed folder", paths: []string{`/allow/x/p.vhdx`},
			files: map[string]fakeImage{"/allow/x/p.vhdx": parent}, rule: ops.RuleAbsolute, want: "/allow/x/p.vhdx"},
		{name: "file URL in an allowed folder", paths: []string{`file:///allow/x%20y/p.vhdx`},
			files: map[string]fakeImage{"/allow/x y/p.vhdx": parent}, rule: ops.RuleAbsolute, want: "/allow/x y/p.vhdx"},
		{name: "relative path into an allowed folder", paths: []string{`..\..\allow\p.vhdx`},
			files: map[string]fakeImage{"/allow/p.vhdx": parent}, rule: ops.RuleRelative, want: "/allow/p.vhdx"},
		{name: "the wrong id is passed over", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": other, "/vms/q.vhdx": parent},
			rule:  ops.RuleID, want: "/vms/q.vhdx", passed: []string{"relative path /vms/sub/p.vhdx: has another id"}},
		{name: "only the wrong id", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": other},
			err:   ops.ErrParentMismatch, text: `/vms/sub/p.vhdx has id 00000002-0000-4000-8000-000000000000, recorded is 00000001-0000-4000-8000-000000000000`},
		{name: "two by id", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/a.vhdx": parent, "/search/b.vhdx": parent},
			err:   ops.ErrParentMissing, text: `2 files have the recorded id 00000001-0000-4000-8000-000000000000, none is taken: "/vms/a.vhdx", "/search/b.vhdx"`},
		{name: "a copy elsewhere does not matter to a path", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": parent, "/vms/copy.vhdx": parent},
			rule:  ops.RuleRelative, want: "/vms/sub/p.vhdx"},
		{name: "nothing", paths: []string{`.\p.vhdx`, `C:\vms\p.vhdx`},
			err: ops.ErrParentMissing, text: `no image with id 00000001-0000-4000-8000-000000000000 at ".\\p.vhdx", "C:\\vms\\p.vhdx"`},
		{name: "no path at all", files: map[string]fakeImage{"/vms/q.vhdx": parent}, rule: ops.RuleID, want: "/vms/q.vhdx"},
		{name: "other family", paths: []string{`.\p.vhd`},
			files: map[string]fakeImage{"/vms/sub/p.vhd": {Magic: "fakev", ID: guid(1)}},
			err:   ops.ErrParentMissing, passed: []string{"relative path /vms/sub/p.vhd: a fakev image cannot be the parent of a fakex image"}},
		{name: "other sectors", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": {ID: guid(1), Sector: 4096}},
			err:   ops.ErrCorrupt, text: "has logical sectors of 4096 bytes, the child of 512"},
		{name: "broken parent", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": {ID: guid(1), Broken: "header 3"}},
			err:   ops.ErrCorrupt, text: "cannot be read: fake: header 3"},
		{name: "broken parent, a whole copy", paths: []string{`.\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/p.vhdx": {ID: guid(1), Broken: "header 3"}, "/vms/copy.vhdx": parent},
			rule:  ops.RuleID, want: "/vms/copy.vhdx", passed: []string{"relative path /vms/sub/p.vhdx: fake: header 3"}},
		{name: "outside", paths: []string{`..\..\other\p.vhdx`},
			files: map[string]fakeImage{"/other/p.vhdx": parent},
			err:   ops.ErrParentMissing, passed: []string{"relative path /other/p.vhdx: leads outside the folder"}},
		{name: "outside, absolute", paths: []string{`/other/p.vhdx`},
			files: map[string]fakeImage{"/other/p.vhdx": parent},
			err:   ops.ErrParentMissing, passed: []string{"absolute path /other/p.vhdx: leads outside the folder"}},
		{name: "in our own state folder", paths: []string{`.\.vhdfs-state\p.vhdx`},
			files: map[string]fakeImage{"/vms/sub/.vhdfs-state/p.vhdx": parent}, err: ops.ErrParentMissing},
		{name: "control characters", paths: []string{"p\n.vhdx"},
			files: map[string]fakeImage{"/vms/q.vhdx": parent}, rule: ops.RuleID, want: "/vms/q.vhdx",
			passed: []string{"control characters"}},
		{name: "itself", paths: []string{`.\c.avhdx`}, err: ops.ErrParentMismatch, text: "/vms/sub/c.avhdx has id 00000064-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.image("/vms/sub/c.avhdx", recorded(tt.paths...))
			for name, im := range tt.files {
				w.image(name, im)
			}
			w.host.Freeze()
			asked := w.asked("/other")
			chain, err := w.lib.ChainOf(w.lib.Top("sub/c.avhdx"))
			require.NoError(t, err)
			checkPassed(t, tt.passed, chain[0].Passed)
			h, err := w.lib.Open(w.lib.Top("sub/c.avhdx"), ops.Read)
			require.Empty(t, asked(), "the host was asked about a path outside")
			if tt.err != nil {
				require.Len(t, chain, 1)
				for _, err := range []error{chain[0].Err, err} {
					require.ErrorIs(t, err, tt.err)
					require.ErrorContains(t, err, tt.text)
				}
				return
			}
			require.NoError(t, err)
			defer func() { require.NoError(t, h.Close()) }()
			require.Len(t, chain, 2)
			require.NoError(t, chain[0].Err)
			require.Equal(t, tt.rule, chain[1].Rule)
			require.Equal(t, tt.want, chain[1].Ref.Path())
			require.Equal(t, tt.want, h.Layers()[1].Path())
			got := make([]byte, 512)
			_, err = h.ReadAt(got, 3*512)
			require.NoError(t, err)
			require.Equal(t, byte(7), got[100])
		})
	}
}

// asked notes every call on the host for a path beneath dir from now on.
func (w *world) asked(dir string) func() []string {
	var mu sync.Mutex
	var list []string
	w.host.SetFault(func(c sim.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(path.Clean(c.Path), dir) {
			list = append(list, c.Op.String()+" "+c.Path)
		}
		return nil
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return list
	}
}

func checkPassed(t *testing.T, want []string, got []ops.Candidate) {
	t.Helper()
	var lines []string
	for _, c := range got {
		lines = append(lines, string(c.Rule)+" "+c.Path+": "+c.Why)
	}
	for _, line := range want {
		require.Contains(t, strings.Join(lines, "\n"), line)
	}
}

// One file by two names is one candidate.
func TestResolveHardLinks(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/c.avhdx", recorded(`.\p.vhdx`))
	w.image("/vms/a.vhdx", parent)
	require.NoError(t, w.host.Link("/vms/a.vhdx", "/vms/b.vhdx"))
	require.NoError(t, w.host.Link("/vms/a.vhdx", "/search/b.vhdx"))
	chain, err := w.lib.ChainOf(w.lib.Top("c.avhdx"))
	require.NoError(t, err)
	require.Len(t, chain, 2)
	require.Equal(t, "/vms/a.vhdx", chain[1].Ref.Path())
}

// H33, H34: what a name leads to must be a plain file beneath the folder.
func TestResolveOtherThanFiles(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(w *world)
	}{
		{"symbolic link outside", func(w *world) { w.image("/other/p.vhdx", parent); w.host.Symlink("/other/p.vhdx", "/vms/p.vhdx") }},
		{"symbolic link inside", func(w *world) {
			w.image("/vms/.vhdfs-state/p.vhdx", parent)
			w.host.Symlink(".vhdfs-state/p.vhdx", "/vms/p.vhdx")
		}},
		{"FIFO", func(w *world) { w.host.Special("/vms/p.vhdx") }},
		{"directory", func(w *world) { w.host.Dir("/vms/p.vhdx") }},
		{"secret text", func(w *world) { w.put("/vms/p.vhdx", []byte("root:x:0:0:canary")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.image("/vms/c.avhdx", recorded(`.\p.vhdx`))
			tt.make(w)
			asked := w.asked("/other")
			_, err := w.read("c.avhdx")
			require.ErrorIs(t, err, ops.ErrParentMissing)
			require.NotContains(t, err.Error(), "canary")
			require.Empty(t, asked())
			chain, err := w.lib.ChainOf(w.lib.Top("c.avhdx"))
			require.NoError(t, err)
			require.NotEmpty(t, chain[0].Passed)
			require.NotContains(t, chain[0].Passed[0].Why, "canary")
		})
	}
}

func TestCycles(t *testing.T) {
	for _, tt := range []struct {
		name   string
		images map[string]fakeImage
		link   string // hard link to /vms/a.vhdx
	}{
		{name: "itself", images: map[string]fakeImage{
			"/vms/a.vhdx": {ID: guid(1), Parent: []string{guid(1)}, Paths: []fakePath{{ops.PathRelative, "a.vhdx"}}}}},
		{name: "itself by a hard link", link: "/vms/b.vhdx", images: map[string]fakeImage{
			"/vms/a.vhdx": {ID: guid(1), Parent: []string{guid(1)}, Paths: []fakePath{{ops.PathRelative, "b.vhdx"}}}}},
		{name: "two", images: map[string]fakeImage{
			"/vms/a.vhdx": {ID: guid(1), Parent: []string{guid(2)}, Paths: []fakePath{{ops.PathRelative, "b.vhdx"}}},
			"/vms/b.vhdx": {ID: guid(2), Parent: []string{guid(1)}, Paths: []fakePath{{ops.PathRelative, `x\..\A.VHDX`}}}}},
		{name: "three by id", images: map[string]fakeImage{
			"/vms/a.vhdx": {ID: guid(1), Parent: []string{guid(2)}},
			"/vms/b.vhdx": {ID: guid(2), Parent: []string{guid(3)}},
			"/vms/c.vhdx": {ID: guid(3), Parent: []string{guid(1)}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			for name, im := range tt.images {
				w.image(name, im)
			}
			if tt.link != "" {
				require.NoError(t, w.host.Link("/vms/a.vhdx", tt.link))
			}
			_, err := w.read("a.vhdx")
			require.ErrorIs(t, err, ops.ErrCycle)
			chain, err := w.lib.ChainOf(w.lib.Top("a.vhdx"))
			require.NoError(t, err)
			require.Len(t, chain, len(tt.images))
			require.ErrorIs(t, chain[len(chain)-1].Err, ops.ErrCycle)
			_, err = w.lib.Graph()
			require.NoError(t, err)
		})
	}
}

// A child with its parent's id, as some tools copy it, still finds the parent.
func TestChildWithTheIDOfItsParent(t *testing.T) {
	w := newWorld(t)
	child := recorded(`.\gone.vhdx`)
	child.ID = guid(1)
	w.image("/vms/c.avhdx", child)
	w.image("/vms/p.vhdx", parent)
	chain, err := w.lib.ChainOf(w.lib.Top("c.avhdx"))
	require.NoError(t, err)
	require.Len(t, chain, 2)
	require.Equal(t, "/vms/p.vhdx", chain[1].Ref.Path())
}

func TestTimestampIsAWarning(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhd", fakeImage{Magic: "fakev", ID: guid(1)})
	st, err := w.dirs["/vms"].Stat("p.vhd")
	require.NoError(t, err)
	for name, at := range map[string]time.Time{"same.avhd": st.Mtime, "old.avhd": st.Mtime.Add(-time.Hour)} {
		c := recorded(`.\p.vhd`)
		c.Magic, c.Time = "fakev", at
		w.image("/vms/"+name, c)
		chain, err := w.lib.ChainOf(w.lib.Top(name))
		require.NoError(t, err)
		require.Len(t, chain, 2)
		require.Equal(t, name == "old.avhd", len(chain[0].Warnings) == 1, "%v", chain[0].Warnings)
		_, err = w.read(name)
		require.NoError(t, err)
	}
}

// The host's failure is not a missing parent (F09).
func TestResolveSurvivesHostErrors(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/c.avhdx", recorded("/allow/p.vhdx"))
	w.image("/allow/p.vhdx", parent)
	w.failOpens("/allow/p.vhdx", 1<<30)
	_, err := w.read("c.avhdx")
	require.NotErrorIs(t, err, ops.ErrParentMissing)
	require.ErrorContains(t, err, "too many open files")
	w.host.SetFault(nil)
	_, err = w.read("c.avhdx")
	require.NoError(t, err)
}
