// Package layers holds the rules of the code that a compiler does not: which
// package may import which, where host files are opened, how long things get.
package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "vhdfs"

// Packages that a rule names together.
const (
	xsys   = "golang.org/x/sys/unix"
	gofuse = "github.com/hanwen/go-fuse/v2/"
	logrus = "github.com/sirupsen/logrus"
	cli    = "github.com/urfave/cli/v2"
	uuid   = "github.com/google/uuid"
)

// mayImport is the diagram: what a package's code, tests aside, may import
// besides the standard library. A name that ends in "/" stands for all below it.
var mayImport = map[string][]string{
	"vhdfs/ops":        {xsys},
	"vhdfs/ops/host":   {xsys, "vhdfs/ops"},
	"vhdfs/ops/part":   {"vhdfs/ops"},
	"vhdfs/ops/track":  {"vhdfs/ops"},
	"vhdfs/ops/backup": {"vhdfs/ops"},
	"vhdfs/ops/view":   {"vhdfs/ops", "vhdfs/ops/part"},
	"vhdfs/vhdx":       {"vhdfs/ops"},
	"vhdfs/vhd":        {"vhdfs/ops"},
	"vhdfs/iso":        {"vhdfs/ops"},
	"vhdfs/vfd":        {"vhdfs/ops"},
	"vhdfs/fs":         {gofuse, logrus, xsys, "vhdfs/ops", "vhdfs/ops/part", "vhdfs/ops/view"},
	"vhdfs/cmd/vhdfs":  {logrus, cli, xsys, gofuse, uuid, "vhdfs/ops", "vhdfs/ops/", "vhdfs/fs", "vhdfs/vhdx", "vhdfs/vhd", "vhdfs/iso", "vhdfs/vfd"},

	"vhdfs/test/fixture":     {},
	"vhdfs/test/need":        {},
	"vhdfs/test/sim":         {"vhdfs/ops"},
	"vhdfs/test/conformance": {"vhdfs/ops", "vhdfs/test/sim", "github.com/stretchr/testify/require"},
	"vhdfs/test/":            {"vhdfs/", "github.com/", "pgregory.net/rapid", "go.uber.org/goleak", xsys},
}

// source is one parsed Go file.
type source struct {
	name string // slash path in the repository
	pkg  string // import path
	test bool
	file *ast.File
	text string
}

// sources parses every Go file of the repository.
func sources(t *testing.T, fset *token.FileSet) []source {
	t.Helper()
	var list []source
	for _, name := range files(t, ".go") {
		text, err := os.ReadFile(filepath.Join(root(t), name))
		require.NoError(t, err)
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		require.NoError(t, err)
		list = append(list, source{
			name: name, pkg: path.Join(module, path.Dir(name)),
			test: strings.HasSuffix(name, "_test.go"), file: f, text: string(text),
		})
	}
	require.NotEmpty(t, list)
	return list
}

// files are the repository's files with one of the endings.
func files(t *testing.T, endings ...string) []string {
	t.Helper()
	var list []string
	err := fs.WalkDir(os.DirFS(root(t)), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".ci" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		for _, e := range endings {
			if strings.HasSuffix(name, e) && !d.IsDir() {
				list = append(list, name)
			}
		}
		return nil
	})
	require.NoError(t, err)
	return list
}

// root is the directory of go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "go.mod"))
	return dir
}

// rule is what the diagram says of a package: its own row, or that of the
// closest directory above it.
func rule(pkg string) ([]string, bool) {
	if allowed, ok := mayImport[pkg]; ok {
		return allowed, true
	}
	for dir := path.Dir(pkg); dir != "."; dir = path.Dir(dir) {
		if allowed, ok := mayImport[dir+"/"]; ok {
			return allowed, true
		}
	}
	return nil, false
}

func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return first != module && !strings.Contains(first, ".")
}

func allows(allowed []string, imported string) bool {
	if standard(imported) {
		return true
	}
	for _, a := range allowed {
		if a == imported || strings.HasSuffix(a, "/") && strings.HasPrefix(imported, a) {
			return true
		}
	}
	return false
}

func TestImportDiagram(t *testing.T) {
	for _, s := range sources(t, token.NewFileSet()) {
		allowed, ok := rule(s.pkg)
		if !ok {
			t.Errorf("%s: package %s is not in the diagram", s.name, s.pkg)
			continue
		}
		if s.test {
			continue // tests use whatever shows the point
		}
		for _, i := range s.file.Imports {
			imported := strings.Trim(i.Path.Value, `"`)
			if !allows(allowed, imported) {
				t.Errorf("%s: %s may not import %s", s.name, s.pkg, imported)
			}
		}
	}
}

func TestDiagramTellsPackagesApart(t *testing.T) {
	for _, tt := range []struct {
		pkg, imported string
		want          bool
	}{
		{"vhdfs/vhdx", "vhdfs/ops", true},
		{"vhdfs/vhdx", "vhdfs/vhd", false},
		{"vhdfs/vhdx", "vhdfs/ops/host", false},
		{"vhdfs/vhdx", "golang.org/x/sys/unix", false},
		{"vhdfs/vhdx", "encoding/binary", true},
		{"vhdfs/fs", "vhdfs/vhdx", false},
		{"vhdfs/fs", "github.com/hanwen/go-fuse/v2/fuse", true},
		{"vhdfs/ops", "vhdfs/vhdx", false},
		{"vhdfs/ops", "vhdfs/test/sim", false},
		{"vhdfs/test/e2e", "vhdfs/vhdx", true},
		{"vhdfs/test/fixture", "vhdfs/vhdx", false},
	} {
		t.Run(tt.pkg+" "+tt.imported, func(t *testing.T) {
			allowed, ok := rule(tt.pkg)
			require.True(t, ok)
			require.Equal(t, tt.want, allows(allowed, tt.imported))
		})
	}
	_, ok := rule("vhdfs/qcow2")
	require.False(t, ok, "a new package needs its place in the diagram")
}
