package layers

import (
	"go/ast"
	"go/format"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	maxFileLines = 400
	maxFuncLines = 60
)

// hostFiles are the functions that reach files of the host by name.
var hostFiles = regexp.MustCompile(`^(Open|OpenFile|OpenInRoot|OpenRoot|Create|CreateTemp|ReadFile|WriteFile|ReadDir|DirFS|CopyFS|` +
	`Rename|Remove|RemoveAll|Mkdir|MkdirAll|MkdirTemp|Truncate|Link|Symlink|Readlink|Chmod|Chown|Chtimes|Stat|Lstat|` +
	`Openat|Openat2|Unlink|Unlinkat|Renameat|Renameat2|Ftruncate|Fallocate|Pwrite|Pread|Fsync|Fdatasync)$`)

// imagePackages reach images through the seam alone. The program and the mount
// also read things that are not images, such as /proc, the bdi of the mount,
// and the mount point, and the mount truncates its own raw; they have [changesFiles].
var imagePackages = []string{"vhdfs/ops", "vhdfs/ops/part", "vhdfs/ops/track", "vhdfs/ops/backup", "vhdfs/ops/view", "vhdfs/vhdx", "vhdfs/vhd", "vhdfs/iso", "vhdfs/vfd"}

// changesFiles are those of [hostFiles] that could change an image.
var changesFiles = regexp.MustCompile(`^(Create|Rename|Link|Openat|Openat2|Renameat|Renameat2|Ftruncate|Fallocate|Pwrite)$`)

func forbiddenCall(pkg, from, name string) bool {
	if from != "os" && from != "unix" && from != "syscall" {
		return false
	}
	for _, p := range imagePackages {
		if p == pkg {
			return hostFiles.MatchString(name)
		}
	}
	return (pkg == "vhdfs/fs" || pkg == "vhdfs/cmd/vhdfs") && changesFiles.MatchString(name)
}

func TestHostFilesAreOpenedInOnePlace(t *testing.T) {
	fset := token.NewFileSet()
	for _, s := range sources(t, fset) {
		if s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if from, ok := sel.X.(*ast.Ident); ok && forbiddenCall(s.pkg, from.Name, sel.Sel.Name) {
				t.Errorf("%s: %s.%s: host files are reached through ops.Dir and ops.File", fset.Position(n.Pos()), from.Name, sel.Sel.Name)
			}
			return true
		})
	}
	require.True(t, forbiddenCall("vhdfs/vhdx", "os", "ReadFile"))
	require.True(t, forbiddenCall("vhdfs/fs", "os", "Rename"))
	require.False(t, forbiddenCall("vhdfs/vhdx", "os", "Getpid"))
}

func TestFilesAndFunctionsStayShort(t *testing.T) {
	fset := token.NewFileSet()
	for _, s := range sources(t, fset) {
		if n := strings.Count(s.text, "\n"); n >= maxFileLines {
			t.Errorf("%s has %d lines, want fewer than %d", s.name, n, maxFileLines)
		}
		if s.test {
			continue // tables may be long
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1; n >= maxFuncLines {
				t.Errorf("%s: %s has %d lines, want fewer than %d", fset.Position(f.Pos()), f.Name.Name, n, maxFuncLines)
			}
			if f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: registration is explicit, without init", fset.Position(f.Pos()))
			}
		}
	}
}

// Every class of error has its row: errno, ReturnValue and exit code.
func TestEveryErrorClassHasARow(t *testing.T) {
	var classes, rows []string
	for _, s := range sources(t, token.NewFileSet()) {
		if s.pkg != "vhdfs/ops" || s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for i, name := range v.Names {
				if strings.HasPrefix(name.Name, "Err") && len(v.Values) > i {
					if call, ok := v.Values[i].(*ast.CallExpr); ok && isSelector(call.Fun, "errors", "New") {
						classes = append(classes, name.Name)
					}
				}
				if name.Name == "Classes" && len(v.Values) > i {
					rows = append(rows, firstNames(v.Values[i])...)
				}
			}
			return true
		})
	}
	require.NotEmpty(t, classes)
	for _, c := range classes {
		require.Contains(t, rows, c, "ops.%s has no row in ops.Classes", c)
	}
}

func isSelector(e ast.Expr, from, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == from && sel.Sel.Name == name
}

// firstNames are the identifiers that open the rows of a table.
func firstNames(table ast.Expr) []string {
	var list []string
	lit, ok := table.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	for _, row := range lit.Elts {
		r, ok := row.(*ast.CompositeLit)
		if !ok || len(r.Elts) == 0 {
			continue
		}
		if id, ok := r.Elts[0].(*ast.Ident); ok {
			list = append(list, id.Name)
		}
	}
	return list
}

// The words are put together here so that this file does not hold them.
var unwanted = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b|/wo` + `rk/|/tmp/br` + `ief|\bissue #?[0-9]|` +
	`(?i:\bsub-?ag` + `ent|\banth` + `ropic\b|\bclau` + `de\b|\bproxy\.gol` + `ang\.org)`)

func TestUnwantedWords(t *testing.T) {
	for _, name := range files(t, ".go", ".md", ".sh", ".yml", ".yaml", "Makefile", "LICENSE", "run", ".json", ".txt", ".1") {
		text, err := os.ReadFile(filepath.Join(root(t), name))
		require.NoError(t, err)
		for i, line := range strings.Split(string(text), "\n") {
			if word := unwanted.FindString(line); word != "" {
				t.Errorf("%s:%d: %q", name, i+1, word)
			}
		}
	}
	require.True(t, unwanted.MatchString("// TO"+"DO later"))
	require.False(t, unwanted.MatchString("a write session reissued 7 times"))
}

func TestFormatted(t *testing.T) {
	for _, s := range sources(t, token.NewFileSet()) {
		want, err := format.Source([]byte(s.text))
		require.NoError(t, err)
		if string(want) != s.text {
			t.Errorf("%s is not formatted by gofmt", s.name)
		}
	}
}
